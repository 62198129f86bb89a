"""Energy conservation of a potential at constant energy, in ASE and in OpenMM, and how it depends on the time step.

uv run benchmarks/conservation.py ethanol-pbe ethanol -o runs/conservation

Equilibrates at 300 K (5 ps of Langevin dynamics), then runs 100 ps of NVE at 0.5 fs in both hosts, and 10 ps each at
0.5 and 0.25 fs. Writes evidence.json. Resumes after a kill. Float32 as a user of the defaults gets it, on one thread
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch
from ase.io import read

from ggnn_ff.data.structures import find_structure
from ggnn_ff.dynamics.run import run_md
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.export import load_potential
from ggnn_ff.stability.report import check_trajectory
from ggnn_ff.stability.show import write_report
from ggnn_ff.stability.verdicts import SHIPPED_DRIFT_THRESHOLD

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potential")
    parser.add_argument("structure")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    folder: Path = arguments.output
    torch.set_num_threads(1)
    loaded = load_potential(arguments.potential)
    warm = make_settings(ensemble="langevin", temperature=300.0, timestep=0.5, steps=10_000, seed=SEED, friction=0.02)
    run_md(loaded, find_structure(arguments.structure), folder / "equilibration", warm)
    start = read(folder / "equilibration" / "trajectory.xyz", index=-1, format="extxyz")

    evidence: dict[str, Any] = {
        "command": f"uv run benchmarks/conservation.py {arguments.potential} {arguments.structure} -o DIR",
        "date": date.today().isoformat(),
        "seed": SEED,
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "dtype": loaded.dtype,
        "temperature_K": 300.0,
        "nve": {},
    }
    for host in ("ase", "openmm"):
        fluctuations = {}
        for timestep, picoseconds in ((0.5, 10.0), (0.25, 10.0), (0.5, 100.0)):
            name = f"{host}_{timestep}fs_{picoseconds:.0f}ps"
            steps = round(1000 * picoseconds / timestep)
            settings = make_settings(host=host, temperature=None, timestep=timestep, steps=steps, seed=SEED)
            result = run_md(loaded, start, folder / name, settings)
            report = check_trajectory(result.folder, drift_threshold=SHIPPED_DRIFT_THRESHOLD)
            write_report(report, result.folder)
            verdicts = {verdict.name: verdict for verdict in report.verdicts}
            fluctuations[timestep, picoseconds] = verdicts["energy fluctuation"].value
        drift = verdicts["energy drift"]
        evidence["nve"][host] = {
            "timestep_fs": timestep,
            "picoseconds": picoseconds,
            "drift_mev_per_atom_per_ps": drift.value,
            "drift_error": drift.error,
            "fluctuation_mev_per_atom": fluctuations[0.5, 100.0],
            "fluctuation_ratio_when_the_time_step_is_halved": fluctuations[0.5, 10.0] / fluctuations[0.25, 10.0],
            "broken_bond": report.bonds.broken,
            "milliseconds_per_step": result.milliseconds_per_step,
        }
        (folder / "evidence.json").write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf8")
    print((folder / "evidence.json").read_text(encoding="utf8"))


if __name__ == "__main__":
    main()
