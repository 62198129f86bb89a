"""Stability of molecular dynamics by the protocol of arXiv 2210.07237, section 4 (MD17), for any number of potentials.

uv run benchmarks/stability.py ethanol-pbe schnet=benchmarks/comparison/schnet/training --seeds 3 \
    --structure ethanol --reference-data ../shared/data/rmd17_ethanol/test.xyz -o benchmarks/stability

What `ggnn-ff certify --protocol md17-stability` does for one, in one table. Writes NAME.json for each potential, and
stability.md with all of them that there are. Run it again to go on after a kill, or with more potentials; what is in
NAME.json is not run again.
"""

import argparse
import hashlib
import json
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.structures import find_structure
from ggnn_ff.export import load_potential
from ggnn_ff.files import write_atomically
from ggnn_ff.md17_stability import (
    PICOSECONDS,
    SEEDS,
    TEMPERATURE,
    TIMESTEP,
    StabilityRow,
    frames_as_trajectory,
    md17_stability,
    stability_table,
)
from ggnn_ff.stability.structure import distance_distribution, distribution_error

PUBLISHED = """
As published in arXiv 2210.07237 for ethanol of MD17 (not rMD17), trained on 9500 frames (not 950), 5 seeds; not
measured here, and quoted without the paper at hand: look them up there before you rely on them.

| model | force MAE (meV/Å) | stability (ps) | h(r) MAE |
|---|---:|---:|---:|
| NequIP | 1.3 | 300 ± 0 | 0.08 ± 0.00 |
| GemNet-dT | 1.7 | 300 ± 0 | 0.09 ± 0.00 |
| SphereNet | 1.7 | 33 ± 16 | 0.13 ± 0.03 |
| GemNet-T | 2.1 | 169 ± 98 | 0.10 ± 0.02 |
| DimeNet | 4.2 | 26 ± 10 | 0.15 ± 0.03 |
| PaiNN | 5.0 | 86 ± 109 | 0.15 ± 0.08 |
| DeepPot-SE | 8.9 | 300 ± 0 | 0.09 ± 0.00 |
| ForceNet | 14.9 | 300 ± 0 | 0.86 ± 0.05 |
| SchNet | 16.8 | 247 ± 106 | 0.21 ± 0.11 |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potentials", nargs="+", help="shipped names, or NAME=PATH")
    parser.add_argument("--structure", required=True)
    parser.add_argument("--reference-data", type=Path, required=True, help="frames of the reference method at 500 K")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--picoseconds", type=float, default=PICOSECONDS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for item in arguments.potentials:
        find_row(*item.partition("=")[::2], arguments)
    rows = [read_row(file) for file in arguments.output.glob("*.json")]
    rows.sort(key=lambda row: (row.forces_mae is None, row.forces_mae))
    halves = difference_of_halves(arguments)
    text = (
        f"{arguments.seeds} seeds of {arguments.picoseconds:g} ps, {TIMESTEP} fs, {TEMPERATURE:g} K, Nose-Hoover; "
        f"mean and standard deviation; one thread, compiled, beside other jobs, so that steps/s do not compare rows. "
        f"h(r) is compared with that of {arguments.reference_data.name}, whose own halves differ by {halves:.3f}.\n\n"
        f"{stability_table(rows)}{PUBLISHED}"
    )
    write_atomically(arguments.output / "stability.md", lambda path: path.write_text(text, encoding="utf8"))
    print(text)


def find_row(name: str, source: str, arguments: argparse.Namespace) -> StabilityRow:
    """From NAME.json if that is of this potential and these runs, else from simulations."""
    potential = load_potential(source or name)
    made_with = {
        "potential_sha256": potential.contract.identity,
        "structure": arguments.structure,
        "reference_sha256": hashlib.sha256(arguments.reference_data.read_bytes()).hexdigest(),
        "picoseconds": arguments.picoseconds,
        "seeds": arguments.seeds,
    }
    file: Path = arguments.output / f"{name}.json"
    if file.exists():
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf8"))
        if content["made_with"] == made_with:
            return read_row(file)
    row = md17_stability(
        potential,
        find_structure(arguments.structure),
        arguments.reference_data,
        arguments.output / name,
        name,
        picoseconds=arguments.picoseconds,
        seeds=arguments.seeds,
    )
    machine = {"date": date.today().isoformat(), "machine": platform.machine(), "torch": torch.__version__}
    text = json.dumps({"made_with": made_with, **machine, "row": asdict(row)}, indent=1) + "\n"
    write_atomically(file, lambda path: path.write_text(text, encoding="utf8"))
    return row


def read_row(file: Path) -> StabilityRow:
    return TypeAdapter(StabilityRow).validate_python(json.loads(file.read_text(encoding="utf8"))["row"])


def difference_of_halves(arguments: argparse.Namespace) -> float:
    """Error of h(r) that chance makes of half of the reference frames."""
    frames = read_frames(arguments.reference_data)
    reference = frames_as_trajectory(frames, find_structure(arguments.structure))
    halves = zip(np.array_split(reference.positions, 2), np.array_split(reference.cell, 2), strict=True)
    first, second = (distance_distribution(positions, cell, reference.pbc)[1] for positions, cell in halves)
    return distribution_error(first, second)


if __name__ == "__main__":
    main()
