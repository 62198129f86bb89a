"""Stability of molecular dynamics by the protocol of arXiv 2210.07237, section 4 (MD17), for any number of potentials.

uv run benchmarks/stability.py ethanol-pbe schnet=benchmarks/comparison/schnet/training --seeds 3 \
    --structure ethanol --reference-data ../shared/data/rmd17_ethanol/test.xyz -o benchmarks/stability

What `ggnn-ff certify --protocol md17-stability` does for one, in one table. Writes NAME.json for each potential, and
stability.md. Run it again to go on after a kill, or with more potentials; what is in NAME.json is not run again.
"""

import argparse
import hashlib
import json
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from ggnn_ff.data.structures import find_structure
from ggnn_ff.export import load_potential
from ggnn_ff.files import write_atomically
from ggnn_ff.md17_stability import (
    PICOSECONDS,
    SEEDS,
    TEMPERATURE,
    TIMESTEP,
    StabilityRow,
    md17_stability,
    stability_table,
)


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
    rows = [find_row(*item.partition("=")[::2], arguments) for item in arguments.potentials]
    text = (
        f"{arguments.seeds} seeds of {arguments.picoseconds:g} ps, {TIMESTEP} fs, {TEMPERATURE:g} K, Nose-Hoover; "
        f"mean and standard deviation; one thread, compiled.\n\n{stability_table(rows)}"
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
            return TypeAdapter(StabilityRow).validate_python(content["row"])
    row = md17_stability(
        potential,
        find_structure(arguments.structure),
        arguments.reference_data,
        arguments.output / name,
        name=name,
        picoseconds=arguments.picoseconds,
        seeds=arguments.seeds,
    )
    machine = {"date": date.today().isoformat(), "machine": platform.machine(), "torch": torch.__version__}
    text = json.dumps({"made_with": made_with, **machine, "row": asdict(row)}, indent=1) + "\n"
    write_atomically(file, lambda path: path.write_text(text, encoding="utf8"))
    return row


if __name__ == "__main__":
    main()
