"""Ethanol held by springs: a potential that is cheap, exact, smooth and stable, for tests of training and dynamics."""

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.write import write_md17_npz

REST = molecule("CH3CH2OH")
REST.center(about=(0.0, 0.0, 0.0))
_LENGTHS = REST.get_all_distances()
# eV/angstrom^2: bonds as stiff as real ones, then angles, then the rest so that nothing turns freely
_STIFFNESS = np.where(_LENGTHS < 1.6, 32.0, np.where(_LENGTHS < 2.6, 5.0, 1.0)) * (1.0 - np.eye(len(REST)))


class Springs(Calculator):
    """A spring between each two atoms."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, forces = springs(self.atoms.positions)
        self.results = {"energy": energy, "forces": forces}


def springs(positions):
    """Energy in eV, with an offset as total energies have, and forces."""
    vectors = positions[None] - positions[:, None]
    lengths = np.linalg.norm(vectors, axis=2) + np.eye(len(positions))
    stretch = (lengths - _LENGTHS) * (1.0 - np.eye(len(positions)))
    forces = np.einsum("ij,ijk->ik", _STIFFNESS * stretch / lengths, vectors)
    return 0.25 * float((_STIFFNESS * stretch**2).sum()) - 4200.0, forces


def ethanol() -> Atoms:
    """At rest, with the calculator."""
    atoms = REST.copy()
    atoms.calc = Springs()
    return atoms


def set_temperature(atoms, temperature, random):
    """Momenta of the Maxwell-Boltzmann distribution."""
    widths = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
    atoms.set_momenta(widths * random.standard_normal((len(atoms), 3)))


def labelled_frames(n_frames, seed=0, temperature=500.0, stride=20) -> LabelledFrames:
    """Frames of a Langevin run."""
    atoms, random = ethanol(), np.random.default_rng(seed)
    set_temperature(atoms, temperature, random)
    run = Langevin(atoms, units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=random)
    positions, energies, forces = [], [], []
    run.run(100)
    for _ in range(n_frames):
        run.run(stride)
        positions.append(atoms.positions - atoms.get_center_of_mass())
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    return LabelledFrames(
        numbers=np.tile(atoms.numbers, n_frames).astype(np.int64),
        positions=np.concatenate(positions),
        forces=np.concatenate(forces),
        n_atoms=np.full(n_frames, len(atoms), dtype=np.int64),
        energy=np.array(energies),
        cell=np.zeros((n_frames, 3, 3)),
        pbc=np.zeros((n_frames, 3), dtype=bool),
        level_of_theory="springs",
    )


def write_frames(path, n_frames, seed=0):
    """The same as an npz in MD17's layout."""
    write_md17_npz(path, labelled_frames(n_frames, seed))
    return path
