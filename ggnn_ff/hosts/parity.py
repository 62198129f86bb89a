"""The same frame through every host: the numbers must be the same."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm
from ase import Atoms
from openmm import unit

from ggnn_ff.export import load_potential
from ggnn_ff.hosts.ase import GGNNCalculator
from ggnn_ff.hosts.openmm import make_topology, openmm_force
from ggnn_ff.units import ANGSTROM_PER_NANOMETER, EV_PER_KJ_PER_MOL


@dataclass(frozen=True)
class HostAnswer:
    """What one host says about a frame: energy in eV, forces (N, 3) in eV/angstrom."""

    energy: float
    forces: np.ndarray


def answers_of_all_hosts(
    folder: Path, torchscript: Path, atoms: Atoms, dtype: str, compile: bool = False
) -> dict[str, HostAnswer]:
    """Energy and forces of one frame by eager, TorchScript, ASE, TorchForce and PythonForce.

    Args:
        folder: durable form of the potential.
        torchscript: the file exported from it.
        atoms: the frame.
        dtype: "float32" or "float64".
        compile: let the three hosts run the potential as machine code.

    Raises:
        ImportError: openmmtorch cannot be imported.
    """
    answers = {}
    for name, source in (("eager", folder), ("TorchScript", torchscript)):
        prediction = load_potential(source, dtype=dtype).evaluate(atoms)
        answers[name] = HostAnswer(float(prediction.energy[0]), prediction.forces.numpy())
    in_ase = atoms.copy()
    in_ase.calc = GGNNCalculator(torchscript, dtype=dtype, compile=compile)
    answers["ASE"] = HostAnswer(float(in_ase.get_potential_energy()), in_ase.get_forces())
    for name, backend in (("TorchForce", "torch"), ("PythonForce", "python")):
        force = openmm_force(torchscript, make_topology(atoms), backend=backend, dtype=dtype, compile=compile)
        answers[name] = _openmm_answer(force, atoms)
    return answers


def _openmm_answer(force: openmm.Force, atoms: Atoms) -> HostAnswer:
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(float(mass))
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / ANGSTROM_PER_NANOMETER))
    system.addForce(force)
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / ANGSTROM_PER_NANOMETER)
    state = context.getState(energy=True, forces=True)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    return HostAnswer(float(energy) * EV_PER_KJ_PER_MOL, np.array(forces) * EV_PER_KJ_PER_MOL)
