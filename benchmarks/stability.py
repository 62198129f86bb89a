"""Stability of molecular dynamics by the protocol of arXiv 2210.07237, section 4 (MD17), for any number of potentials.

uv run benchmarks/stability.py ethanol-pbe schnet=runs/comparison/schnet/potential.pt \
    --structure ethanol --reference-data ../shared/data/rmd17_ethanol/test.xyz -o runs/stability

What `ggnn-ff certify --protocol md17-stability` does for one, in one table. Writes stability.json and stability.md.
Run it again to go on after a kill, or with more potentials.
"""

import argparse
import json
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from ggnn_ff.data.structures import find_structure
from ggnn_ff.export import load_potential
from ggnn_ff.md17_stability import PICOSECONDS, SEEDS, TEMPERATURE, TIMESTEP, md17_stability, stability_table


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
    folder: Path = arguments.output
    about = (
        f"{arguments.seeds} seeds of {arguments.picoseconds:g} ps, {TIMESTEP} fs, {TEMPERATURE:g} K, Nose-Hoover; "
        f"mean and standard deviation; {date.today()}, {platform.machine()}, torch {torch.__version__}, one thread, "
        "compiled."
    )
    rows = []
    for item in arguments.potentials:
        name, _, source = item.partition("=")
        row = md17_stability(
            load_potential(source or name),
            find_structure(arguments.structure),
            arguments.reference_data,
            folder / name,
            name=name,
            picoseconds=arguments.picoseconds,
            seeds=arguments.seeds,
        )
        rows.append(row)
        content = {"about": about, "rows": [asdict(one) for one in rows]}
        (folder / "stability.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / "stability.md").write_text(f"{about}\n\n{stability_table(rows)}")
    print((folder / "stability.md").read_text())


if __name__ == "__main__":
    main()
