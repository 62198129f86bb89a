"""Frames per second of training, ours beside mace-torch: the same MACE, frames and batch, in the same run.

uv run benchmarks/training.py --data ../shared/data/rmd17_ethanol/train.xyz      # writes benchmarks/training.json

Both take turns for some rounds, after each has been asked once: ours compiles. A step has all that either does for one,
from the data to the averaged weights.
"""

import argparse
import json
import os
import platform
import statistics
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from speed import ROOT, Candidate, ask, started

SIZES = {"MACE 64x0e+64x1o": {"n_features": 64, "l_hidden": 1}, "MACE 32x0e": {"n_features": 32, "l_hidden": 0}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labelled frames of one molecule, extxyz")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of steps in one turn")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    size, data = given.batch_size, given.data.resolve()
    rows = []
    for name, hyperparameters in SIZES.items():
        peer = [str(hyperparameters["n_features"]), str(hyperparameters["l_hidden"]), str(size)]
        candidates = [
            Candidate("mace-torch", "mace_torch", peer),
            Candidate("ours", "ours_training", ["mace", json.dumps(hyperparameters), str(size)]),
        ]
        with ExitStack() as stack:
            processes = {one.name: stack.enter_context(started(one, given.threads)) for one in candidates}
            found: dict[str, list[float]] = {one: [] for one in processes}
            for round_ in range(given.rounds + 1):
                for one, process in processes.items():
                    answer = ask(process, data, given.seconds if round_ else 0.0)
                    if "error" in answer:
                        raise SystemExit(f"{one}: {answer['error']}")
                    if round_:
                        found[one].append(answer["milliseconds"])
        milliseconds = {one: statistics.median(times) for one, times in found.items()}
        ratio = milliseconds["mace-torch"] / milliseconds["ours"]
        rows.append({"model": name, "rounds": found, "milliseconds": milliseconds, "ratio": ratio})
        rates = ", ".join(f"{one} {1e3 * size / time:.0f}" for one, time in milliseconds.items())
        print(f"{name}, frames per second: {rates}; {ratio:.1f} times as many")
    evidence = {
        "date": date.today().isoformat(),
        "machine": platform.platform(),
        "processors": os.cpu_count(),
        "threads": given.threads,
        "batch_size": size,
        "rows": rows,
    }
    (ROOT / "benchmarks" / "training.json").write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
