"""What guarding costs: steps of dynamics with and without it, in turns, in ASE and in OpenMM.

uv run benchmarks/guard.py                      # ethanol-pbe, compiled where that is possible; benchmarks/guard.json
uv run benchmarks/guard.py --potential run --structure molecule.xyz

Processor time of one thread, which other jobs on the machine change less than the time of day.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
import torch
from ase import Atoms
from ase.md.verlet import VelocityVerlet

from ggnn_ff import GGNNCalculator, guarded, load_potential, openmm_force
from ggnn_ff.data.structures import find_structure
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.dynamics.start import first_state

ROOT = Path(__file__).parents[1]


def in_ase(loaded: Any, atoms: Atoms) -> Any:
    """ASE's dynamics, and the verb that takes steps."""
    atoms.calc = GGNNCalculator(loaded)
    dynamics = VelocityVerlet(atoms, 0.5 * ase.units.fs)
    return dynamics, dynamics.run


def in_openmm(loaded: Any, atoms: Atoms) -> Any:
    """An OpenMM simulation, and the verb that takes steps."""
    import openmm
    from openmm import app, unit

    from ggnn_ff.hosts.openmm import make_topology

    topology, system = make_topology(atoms), openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(openmm_force(loaded, topology))
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(topology, system, openmm.VerletIntegrator(0.5 * unit.femtosecond), platform)
    simulation.context.setPositions(atoms.positions / 10.0)
    simulation.context.setVelocitiesToTemperature(300.0 * unit.kelvin, 0)
    return simulation, simulation.step


def row_of(host: str, prepare: Callable[[Any, Atoms], Any], loaded: Any, atoms: Atoms, given: Any) -> dict[str, Any]:
    """Medians over rounds."""
    dynamics, take = prepare(loaded, atoms)
    take(given.steps)
    times: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(2 * given.rounds):
            guard = round_ % 2 == 1
            with guarded(dynamics, loaded, Path(folder)) if guard else nullcontext():
                began = time.process_time()
                take(given.steps)
                times[guard].append(1e3 * (time.process_time() - began) / given.steps)
    ratios = np.array(times[True]) / np.array(times[False])
    return {
        "host": host,
        "cpu_milliseconds_per_step": statistics.median(times[False]),
        "guarded_cpu_milliseconds_per_step": statistics.median(times[True]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potential", default="ethanol-pbe")
    parser.add_argument("--structure", default="ethanol")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000, help="of one turn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_potential(given.potential)
    if loaded.contract.domain is None:
        print(f"{given.potential} does not describe its training data: only the other checks are measured")
    atoms = first_state(find_structure(given.structure), make_settings(temperature=300.0))
    rows = [
        row_of(host, prepare, loaded, atoms.copy(), given) for host, prepare in (("ase", in_ase), ("openmm", in_openmm))
    ]
    for row in rows:
        print(f"{row['host']}: {row['ratio']:.3f} times a step of {row['cpu_milliseconds_per_step']:.3f} ms")
    evidence = {
        "command": shlex.join(["uv", "run", "benchmarks/guard.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": platform.platform(),
        "torch": torch.__version__,
        "potential": given.potential,
        "n_atoms": len(atoms),
        "with_domain": loaded.contract.domain is not None,
        "rows": rows,
    }
    (ROOT / "benchmarks" / "guard.json").write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
