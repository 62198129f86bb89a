"""The first state of a run: a sound structure with momenta, and how many degrees of freedom it has."""

import numpy as np
from ase import Atoms

from ggnn_ff.dynamics.settings import MDSettings
from ggnn_ff.errors import InputError
from ggnn_ff.graph import from_atoms
from ggnn_ff.neighbors import check_apart
from ggnn_ff.units import KELVIN_TO_EV

_STILL = 1e-6  # share of the kinetic energy in rigid motion, below which there is none
_LINEAR = 1e-10  # least moment of inertia over the largest one, below which there is no rotation about that axis


def first_state(atoms: Atoms, settings: MDSettings) -> Atoms:
    """A copy of `atoms` with momenta: its own, or drawn at `settings.temperature`.

    Drawn momenta follow Maxwell and Boltzmann for all 3N degrees of freedom; then translation and, without
    periodicity, rotation are taken out, and what is left is not scaled. So each of the other degrees of freedom has
    the temperature on average. A single atom keeps its translation.

    Raises:
        InputError: constraints, atoms on one place, or no momenta where none are drawn.
    """
    if atoms.constraints:
        kinds = ", ".join(sorted({type(constraint).__name__ for constraint in atoms.constraints}))
        raise InputError(
            f"`structure` must have no constraints, which runs do not keep, got {kinds}; remove them with "
            "atoms.set_constraint(), or run ASE's integrators yourself with GGNNCalculator"
        )
    check_apart(from_atoms(atoms))  # finite, not empty, no two atoms on one place
    start = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    start.set_masses(atoms.get_masses())
    if settings.temperature is None:
        momenta = atoms.get_momenta()
        if not momenta.any():
            raise InputError("`structure` must have momenta when no temperature is given, got none; give --temperature")
        start.set_momenta(momenta)
        return start
    random = np.random.default_rng([settings.seed, 0])
    widths = np.sqrt(start.get_masses() * KELVIN_TO_EV * settings.temperature)
    start.set_momenta(widths[:, None] * random.standard_normal((len(start), 3)))
    _stop_rigid_motion(start)
    return start


def degrees_of_freedom(start: Atoms, settings: MDSettings) -> int:
    """How many degrees of freedom share the kinetic energy: the N of T = 2 E_kin / (N k).

    All 3N in a Langevin run and for a single atom; else without the translation that is conserved (3N - 3
    in a periodic system) and without rotation (3N - 6 in a molecule, 3N - 5 in a linear one), unless `start` has
    momenta of its own that move it as a whole.
    """
    n = 3 * len(start)
    if settings.ensemble == "langevin" or len(start) == 1:
        return n
    still = start.copy()
    _stop_rigid_motion(still)
    if still.get_kinetic_energy() < (1.0 - _STILL) * start.get_kinetic_energy():
        return n
    if start.pbc.any():
        return n - 3
    moments = np.linalg.eigvalsh(_inertia(start))
    return n - 3 - int((moments > _LINEAR * moments.max()).sum())


def _stop_rigid_motion(atoms: Atoms) -> None:
    """Takes out translation and, without periodicity, rotation, also of linear molecules; not of single atoms."""
    if len(atoms) == 1:
        return
    masses = atoms.get_masses()[:, None]
    velocities = atoms.get_velocities() - atoms.get_momenta().sum(axis=0) / masses.sum()
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        angular_momentum = (masses * np.cross(arms, velocities)).sum(axis=0)
        inverse = np.linalg.pinv(_inertia(atoms), rcond=_LINEAR, hermitian=True)
        velocities -= np.cross(inverse @ angular_momentum, arms)
    atoms.set_velocities(velocities)


def _inertia(atoms: Atoms) -> np.ndarray:
    """Tensor of inertia (3, 3) about the centre of mass."""
    masses, arms = atoms.get_masses()[:, None], atoms.positions - atoms.get_center_of_mass()
    return (masses * arms**2).sum() * np.eye(3) - (masses * arms).T @ arms
