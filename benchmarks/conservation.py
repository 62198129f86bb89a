"""Energy conservation of a potential at constant energy, in ASE and in OpenMM, and how it depends on the time step.

uv run benchmarks/conservation.py ethanol-pbe ethanol -o runs/conservation
uv run benchmarks/conservation.py ethanol-pbe-fast ethanol --forms -o runs/forms

Equilibrates at 300 K (5 ps of Langevin dynamics), then runs 100 ps of NVE at 0.5 fs in both hosts, and 4 ps each at
0.5 and 0.25 fs. Writes evidence.json. Float32 as a user of the defaults gets it; one thread for each run, two runs at
once. With --forms: 20 ps in ASE, a TorchForce and a PythonForce, compiled and as TorchScript each. Run it again to go
on after a kill.
"""

import argparse
import json
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch
from ase.io import read

from ggnn_ff.data.structures import find_structure
from ggnn_ff.dynamics.run import run_md
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.export import load_potential
from ggnn_ff.stability.report import Report, check_trajectory
from ggnn_ff.stability.show import write_report
from ggnn_ff.stability.verdicts import SHIPPED_DRIFT_THRESHOLD

HOSTS = {"ase": ("ase", "auto", None), "openmm": ("openmm", "auto", None)}  # name -> host, backend, compile
FORMS = {
    f"{name}, {form}": (host, backend, compiled)
    for name, host, backend in (
        ("ase", "ase", "auto"),
        ("torch force", "openmm", "torch"),
        ("python force", "openmm", "python"),
    )
    for form, compiled in (("compiled", True), ("torchscript", False))
}
SEED = 0
TEMPERATURE = 300.0  # K
RUNS = {"half_step": (0.25, 4.0), "full_step": (0.5, 4.0)}  # time step in fs, length in ps; and of the long run:
LONG, LONG_OF_FORMS = (0.5, 100.0), (0.5, 20.0)


def equilibrate(potential: str, structure: str, folder: Path) -> None:
    settings = make_settings(ensemble="langevin", temperature=TEMPERATURE, steps=10_000, seed=SEED, friction=0.02)
    run_md(load_potential(potential), find_structure(structure), folder / "equilibration", settings)


def measure(potential: str, folder: Path, name: str, long: tuple[float, float]) -> dict[str, Any]:
    """All runs of one host and form, from the last equilibrated frame."""
    host, backend, compiled = {**HOSTS, **FORMS}[name]
    torch.set_num_threads(1)
    start = read(folder / "equilibration" / "trajectory.xyz", index=-1, format="extxyz")
    reports: dict[str, Report] = {}
    for run, (timestep, picoseconds) in {**RUNS, "long": long}.items():
        steps = round(1000 * picoseconds / timestep)
        settings = make_settings(
            host=host, backend=backend, temperature=None, timestep=timestep, steps=steps, seed=SEED
        )
        there = folder / f"{name.replace(', ', '_').replace(' ', '_')}_{run}"
        run_md(load_potential(potential), start, there, settings, progress=False, compile=compiled)
        reports[run] = check_trajectory(there, drift_threshold=SHIPPED_DRIFT_THRESHOLD)
        write_report(reports[run], there)
    verdicts = {verdict.name: verdict for verdict in reports["long"].verdicts}
    return {
        "timestep_fs": long[0],
        "picoseconds": long[1],
        "drift_mev_per_atom_per_ps": verdicts["energy drift"].value,
        "drift_error": verdicts["energy drift"].error,
        "fluctuation_mev_per_atom": fluctuation(reports["long"]),
        "fluctuation_ratio_when_the_time_step_is_halved": (
            fluctuation(reports["full_step"]) / fluctuation(reports["half_step"])
        ),
        "largest_bond_deviation_angstrom": float(reports["long"].bonds.largest.max()),
        "broken_bond": reports["long"].bonds.broken,
    }


def fluctuation(report: Report) -> float:
    """RMS of the total energy about its fitted line, meV/atom."""
    (value,) = [verdict.value for verdict in report.verdicts if verdict.name == "energy fluctuation"]
    assert value is not None
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potential")
    parser.add_argument("structure")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--forms", action="store_true", help="every host, compiled and not")
    arguments = parser.parse_args()
    flags = ["--forms"] if arguments.forms else []
    names, long = (list(FORMS), LONG_OF_FORMS) if arguments.forms else (list(HOSTS), LONG)
    folder: Path = arguments.output
    torch.set_num_threads(1)
    equilibrate(arguments.potential, arguments.structure, folder)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        n = len(names)
        results = list(pool.map(measure, [arguments.potential] * n, [folder] * n, names, [long] * n))
    contract = load_potential(arguments.potential).contract
    evidence = {
        "contract_sha256": contract.identity,
        "command": "uv run benchmarks/conservation.py "
        + " ".join([arguments.potential, arguments.structure, *flags, "-o DIR"]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU, torch {torch.__version__}",
        "seed": SEED,
        "dtype": load_potential(arguments.potential).dtype,
        "temperature_K": TEMPERATURE,
        "nve": dict(zip(names, results, strict=True)),
    }
    text = json.dumps(evidence, indent=1)
    (folder / "evidence.json").write_text(text + "\n", encoding="utf8")
    print(text)


if __name__ == "__main__":
    main()
