"""Milliseconds per step of dynamics in ASE, ours beside the peers, on the same structures in the same run.

uv run benchmarks/speed.py                       # all; writes benchmarks/speed.json, speed.md and speed.png
uv run benchmarks/speed.py --systems ethanol,aspirin       # some structures
uv run benchmarks/speed.py --only mace                     # some candidates; only prints

Each peer runs in a process of its own, in an environment that uv makes from the header of its script in
benchmarks/peers. All are started first and asked once, since some compile; then they take turns, one structure after
the other, for some rounds: what disturbs the machine disturbs all. Large structures are for one candidate after the
other, since there is not memory for all. Figures are medians over rounds of medians over steps. Models have random
weights and cutoff 5 angstrom. With --systems, figures of other structures stay as they are in benchmarks/speed.json.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms

from ggnn_ff.comparison.speed import structures, water_box

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"
EVIDENCE = ROOT / "benchmarks" / "speed.json"
LARGEST_FOR_PEERS = 1536  # atoms; ours go on, to show how cost and memory grow
LARGEST_FOR_XTB = 192  # the next would take an hour a step
LARGE = 1000  # atoms; from here on there is one round


@dataclass(frozen=True)
class Candidate:
    """A row of the table: `against` is the row of the same architecture and hyper-parameters in a peer."""

    name: str
    script: str
    arguments: list[str] = field(default_factory=list)
    against: str | None = None
    largest: int = LARGEST_FOR_PEERS  # atoms


def ours(name: str, against: str, **hyperparameters: float) -> Candidate:
    label = {"mace": "MACE", "nequip": "NequIP", "painn": "PaiNN", "schnet": "SchNet"}.get(
        name, "Equivariant Transformer"
    )
    return Candidate(
        f"ours: {label}{against.partition(label)[2]}", "ours", [name, json.dumps(hyperparameters)], against, 10**6
    )


CANDIDATES = [
    Candidate("GFN2-xTB", "tblite_", largest=LARGEST_FOR_XTB),
    Candidate("MACE 64x0e+64x1o", "mace_torch", ["64", "1"]),
    ours("mace", "MACE 64x0e+64x1o", n_features=64, l_hidden=1),
    Candidate("MACE 32x0e", "mace_torch", ["32", "0"]),
    ours("mace", "MACE 32x0e", n_features=32, l_hidden=0),
    Candidate("NequIP 32 x 4, l = 2, compiled", "nequip_", ["32", "4", "2"]),
    ours("nequip", "NequIP 32 x 4, l = 2, compiled", n_features=32, n_layers=4, l_max=2),
    Candidate("SchNet 128 x 6", "schnetpack_", ["schnet", "128", "6"]),
    ours("schnet", "SchNet 128 x 6", n_features=128, n_layers=6, n_radial=20),
    Candidate("PaiNN 64 x 3", "schnetpack_", ["painn", "64", "3"]),
    ours("painn", "PaiNN 64 x 3", n_features=64, n_layers=3, n_radial=20),
    Candidate("Equivariant Transformer 128 x 6", "torchmdnet_", ["128", "6", "8"]),
    ours(
        "equivariant_transformer",
        "Equivariant Transformer 128 x 6",
        n_features=128,
        n_layers=6,
        n_heads=8,
        n_radial=32,
    ),
]


def systems() -> dict[str, Atoms]:
    """Ethanol, aspirin, 3BPA where the reference data is, and boxes of 64 to 4096 waters."""
    found = structures()
    data = Path(os.environ.get("GGNN_DATA", ROOT.parent / "shared" / "data")) / "3bpa" / "train_300K.xyz"
    if data.exists():
        first = ase.io.read(data, index=0)
        assert isinstance(first, Atoms)
        found["3BPA"] = Atoms(first.numbers, first.positions)
    for side in (8, 10, 16):
        found[f"{side**3} waters"] = water_box(side)
    return dict(sorted(found.items(), key=lambda item: len(item[1])))


@contextmanager
def started(candidate: Candidate, threads: int) -> Iterator[subprocess.Popen]:
    """The peer's process, waiting for requests."""
    script = PEERS / f"{candidate.script}.py"
    alone = script.read_text(encoding="utf8").startswith("# /// script")
    start = ["uv", "run", "--no-project", "--script", str(script)] if alone else [sys.executable, str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*start, *candidate.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.returncode not in (0, -9):
                said.seek(0)
                print(f"{candidate.name} ended with {process.returncode}: {said.read()[-2000:]}", file=sys.stderr)


def ask(process: subprocess.Popen, system: Path, seconds: float) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps({"system": str(system), "seconds": seconds}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        while line and not line.startswith("{"):  # what a library says when it is imported
            line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    return json.loads(line) if line else {"error": "the process ended"}


def measure(
    chosen: list[Candidate], named: dict[str, Atoms], rounds: int, seconds: float, threads: int
) -> list[dict[str, Any]]:
    """One entry for each candidate and system, with the milliseconds of each round or an error."""
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    smallest = min(len(atoms) for atoms in named.values())
    chosen = [candidate for candidate in chosen if smallest <= candidate.largest]
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        processes = {c.name: stack.enter_context(started(c, threads)) for c in chosen}

        def turn(candidate: Candidate, system: str, seconds: float) -> None:
            entry = entries[candidate.name, system]
            if "error" in entry or entry["n_atoms"] > candidate.largest:
                return
            answer = ask(processes[candidate.name], Path(folder) / f"{system.replace(' ', '-')}.xyz", seconds)
            if "milliseconds" in answer and seconds:
                entry["rounds"].append(answer.pop("milliseconds"))
                print(
                    f"{system}, round {len(entry['rounds'])}: {candidate.name}: {entry['rounds'][-1]}", file=sys.stderr
                )
            entry.update(answer)

        for system, atoms in named.items():
            ase.io.write(Path(folder) / f"{system.replace(' ', '-')}.xyz", atoms, format="extxyz")
            for candidate in chosen:
                about = {"candidate": candidate.name, "system": system, "n_atoms": len(atoms), "rounds": []}
                entries[candidate.name, system] = {**about, "date": date.today().isoformat()}
        for candidate in chosen:  # nothing compiles or is imported any more when times are taken
            turn(candidate, next(iter(named)), 0.0)
        for system in [name for name, atoms in named.items() if len(atoms) < LARGE]:
            for _ in range(rounds):
                for candidate in chosen:
                    turn(candidate, system, seconds)
        for candidate in chosen:  # one after the other, for there is not memory for all
            for system in [name for name, atoms in named.items() if len(atoms) >= LARGE]:
                turn(candidate, system, seconds)
            processes[candidate.name].kill()
    for entry in entries.values():
        entry["milliseconds"] = statistics.median(entry["rounds"]) if entry["rounds"] else None
    return list(entries.values())


def table(entries: list[dict[str, Any]], chosen: list[Candidate]) -> str:
    """Milliseconds per step; for ours in brackets how many times faster than the peer."""
    named = list(dict.fromkeys((entry["system"], entry["n_atoms"]) for entry in entries))
    times = {(entry["candidate"], entry["system"]): entry["milliseconds"] for entry in entries}
    lines = ["| | " + " | ".join(f"{name} ({n})" for name, n in named) + " |", "|---|" + "---:|" * len(named)]
    for candidate in chosen:
        cells = []
        for name, _ in named:
            time, peer = times.get((candidate.name, name)), times.get((candidate.against or "", name))
            ratio = f" ({peer / time:.1f}x)" if time and peer else ""
            cells.append(f"{time:.3g}{ratio}" if time else "-")
        lines.append(f"| {candidate.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory(entries: list[dict[str, Any]]) -> str:
    """Peak memory of the process with the largest system, MB for each of its atoms; of small ones it says nothing."""
    lines = ["| | atoms | MB per atom |", "|---|---:|---:|"]
    for name in dict.fromkeys(entry["candidate"] for entry in entries):
        measured = [entry for entry in entries if entry["candidate"] == name and "memory_mb" in entry]
        most = max(measured, key=lambda entry: entry["n_atoms"], default={"n_atoms": 0})
        if most["n_atoms"] >= LARGE and name.startswith("ours"):
            lines.append(f"| {name} | {most['n_atoms']} | {most['memory_mb'] / most['n_atoms']:.2f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def plot(entries: list[dict[str, Any]], path: Path) -> None:
    """Time per atom and step against size; a peer and ours have one colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.0), layout="constrained")
    axes = figure.subplots()
    colours: dict[str, str] = {}
    for name in dict.fromkeys(entry["candidate"] for entry in entries):
        points = [(e["n_atoms"], e["milliseconds"]) for e in entries if e["candidate"] == name and e["milliseconds"]]
        peer = name.removeprefix("ours: ")
        colour = colours.setdefault(peer, f"C{len(colours)}")
        style = "o-" if peer != name else "x--"
        axes.loglog([n for n, _ in points], [1e3 * time / n for n, time in points], style, label=name, color=colour)
    axes.set_xlabel("atoms")
    axes.set_ylabel("microseconds per atom and step")
    figure.legend(fontsize=7, loc="outside right upper")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="candidates whose name contains this word")
    parser.add_argument("--systems", default="", help="names with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps in one turn, at most")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    chosen = [c for c in CANDIDATES if given.only.lower() in c.name.lower()]
    every = systems()
    named = {name: every[name] for name in given.systems.split(",")} if given.systems else every
    entries = measure(chosen, named, given.rounds, given.seconds, given.threads)
    text = f"{table(entries, chosen)}\n\n{memory(entries)}".rstrip()
    print(text)
    for entry in entries:
        if "error" in entry:
            print(f"{entry['candidate']}, {entry['system']}: {entry['error']}")
    if given.only:
        return
    if given.systems and EVIDENCE.exists():  # figures of other structures stay
        entries += [e for e in json.loads(EVIDENCE.read_text(encoding="utf8"))["entries"] if e["system"] not in named]
        entries.sort(key=lambda entry: entry["n_atoms"])
        text = f"{table(entries, chosen)}\n\n{memory(entries)}".rstrip()
    evidence = {
        "command": f"uv run benchmarks/{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
        "date": date.today().isoformat(),
        "machine": platform.platform(),
        "processors": os.cpu_count(),
        "threads": given.threads,
        "entries": entries,
    }
    EVIDENCE.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf8")
    others = f" (other structures before: {EVIDENCE.name})" if given.systems else ""
    heading = f"""# Milliseconds per step

Constant-energy dynamics in ASE, neighbour list included, float32, {given.threads} threads, medians of {given.rounds}
rounds (one round from {LARGE} atoms on); in brackets how many times faster than the peer with the same architecture and
hyper-parameters in the same run.
Made by `{evidence["command"]}`{others} on {evidence["date"]}.

"""
    (ROOT / "benchmarks" / "speed.md").write_text(heading + text + "\n", encoding="utf8")
    plot(entries, ROOT / "benchmarks" / "speed.png")


if __name__ == "__main__":
    main()
