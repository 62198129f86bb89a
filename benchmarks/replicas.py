"""What replicas cost: a step of several in one evaluation over a step of one.

uv run benchmarks/replicas.py ethanol-pbe ethanol --threads 2      # writes benchmarks/replicas.json

Blocks of steps of constant-energy dynamics in turns; medians over blocks. Float32, compiled.
"""

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from ggnn_ff.compiled import compile_potential
from ggnn_ff.data.structures import find_structure
from ggnn_ff.dynamics.replicas import Batch
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.dynamics.start import first_state
from ggnn_ff.export import load_potential

ROOT = Path(__file__).parents[1]
NUMBERS = (1, 8, 16, 32, 64)
STEPS, BLOCKS = 50, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potential")
    parser.add_argument("structure")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    potential, atoms = compile_potential(load_potential(given.potential)), find_structure(given.structure)
    settings = make_settings(host="batched", ensemble="nve", temperature=300.0, steps=1000)
    batches = {n: Batch(potential, [first_state(atoms, settings)] * n, settings) for n in NUMBERS}
    milliseconds: dict[int, list[float]] = {n: [] for n in NUMBERS}
    for block in range(BLOCKS + 1):
        for n, batch in batches.items():
            began = time.perf_counter()
            batch.step(list(range(n)), STEPS)
            if block:  # the first is slower
                milliseconds[n].append(1e3 * (time.perf_counter() - began) / STEPS)
    medians = {n: float(np.median(values)) for n, values in milliseconds.items()}
    rows = [
        {"replicas": n, "milliseconds_per_step": value, "over_one": value / medians[1]} for n, value in medians.items()
    ]
    for row in rows:
        print(f"{row['replicas']:3d} replicas: {row['milliseconds_per_step']:.3f} ms, {row['over_one']:.1f} times one")
    evidence = {
        "command": f"uv run benchmarks/replicas.py {given.potential} {given.structure} --threads {given.threads}",
        "date": date.today().isoformat(),
        "machine": platform.platform(),
        "torch": torch.__version__,
        "rows": rows,
    }
    (ROOT / "benchmarks" / "replicas.json").write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
