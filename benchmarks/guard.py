"""What guarding costs: steps of dynamics in ASE with and without it, in turns.

uv run benchmarks/guard.py                      # ethanol-pbe, compiled where that is possible
uv run benchmarks/guard.py --potential run --structure molecule.xyz --host openmm
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
from ase import Atoms
from ase.md.verlet import VelocityVerlet

from ggnn_ff import GGNNCalculator, guarded, load_potential, openmm_force
from ggnn_ff.data.structures import find_structure
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.dynamics.start import first_state


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potential", default="ethanol-pbe")
    parser.add_argument("--structure", default="ethanol")
    parser.add_argument("--host", default="ase", choices=["ase", "openmm"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000, help="of one turn")
    given = parser.parse_args()
    loaded = load_potential(given.potential)
    if loaded.contract.domain is None:
        print(f"{given.potential} does not describe its training data: only the other checks are measured")
    atoms = first_state(find_structure(given.structure), make_settings(temperature=300.0))
    dynamics, take = (in_openmm if given.host == "openmm" else in_ase)(loaded, atoms)
    take(given.steps)
    times: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(2 * given.rounds):
            guard = round_ % 2 == 1
            with guarded(dynamics, loaded, Path(folder)) if guard else nullcontext():
                began = time.perf_counter()
                take(given.steps)
                times[guard].append(1e3 * (time.perf_counter() - began) / given.steps)
    ratios = np.array(times[True]) / np.array(times[False])
    figures = {
        "potential": given.potential,
        "host": given.host,
        "n_atoms": len(atoms),
        "with_domain": loaded.contract.domain is not None,
        "milliseconds_per_step": statistics.median(times[False]),
        "guarded_milliseconds_per_step": statistics.median(times[True]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
