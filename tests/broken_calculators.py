"""ASE calculators: a right one, and copies of it with one defect each that a check must catch.

Forces and stress are derivatives of the energy by complex steps (Squire and Trapp, SIAM Rev. 40, 110, 1998), exact to
rounding, so that a defect is one line of the energy, or one of what is made of it.
"""

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

_STEP = 1e-30  # of the imaginary part


def cluster() -> Atoms:
    """Six atoms, opposite ones 3.5 angstrom apart, of no symmetry."""
    corners = 1.75 * np.concatenate([np.eye(3), -np.eye(3)])
    atoms = Atoms("Li4Be2", positions=corners)
    atoms.rattle(0.1, seed=3)
    return atoms


def crystal() -> Atoms:
    """Two atoms in a triclinic cell, which see many images of themselves and of each other."""
    atoms = Atoms("Li2", cell=[[2.9, 0.1, 0.0], [0.2, 2.9, 0.0], [-0.3, 0.2, 2.9]], pbc=True)
    atoms.set_scaled_positions([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    atoms.rattle(0.05, seed=4)
    return atoms


class Morse(Calculator):
    """Right: Morse pairs, faded out at a cutoff. E = 1/2 sum_ij D_ij [(1 - exp(-a (r - r0)))^2 - 1] f(r / cutoff)."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, cutoff: float = 4.0) -> None:
        super().__init__()
        self.cutoff = cutoff

    def pair(self, r):
        return (1.0 - np.exp(-1.5 * (r - 2.5))) ** 2 - 1.0

    def faded(self, r):
        return self.pair(r) * np.where(r.real < self.cutoff, (1.0 - (r / self.cutoff) ** 2) ** 4, 0.0)

    def vectors(self, atoms, positions, cell):
        """(K, N, N, S, 3) to all S images, and (K, N, N, S) their lengths, beyond the cutoff for an atom itself."""
        vectors = (positions[:, None, :, :] - positions[:, :, None, :])[..., None, :]
        if atoms.pbc.any():
            fractions = np.round(vectors[:1].real @ np.linalg.inv(atoms.cell.array))
            most = np.ceil(self.cutoff / atoms.cell.lengths() + 0.4).astype(int)  # right-angled but for some degrees
            images = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in most]), axis=-1).reshape(-1, 3)
            vectors = vectors + (images - fractions) @ cell[:, None, None]
        squares = np.sum(vectors**2, axis=-1)
        return vectors, np.sqrt(np.where(squares.real < 1e-6, 1e6, squares))

    def depths(self, numbers):
        return np.sqrt(np.outer(numbers, numbers))[:, :, None] / 4.0

    def energies(self, atoms, positions, cell):
        """(K,) of positions (K, N, 3) and cells (K, 3, 3)."""
        _, r = self.vectors(atoms, positions, cell)
        return 0.5 * np.sum(self.depths(atoms.numbers) * self.faded(r), axis=(1, 2, 3))

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        n = 3 * len(atoms)
        positions = np.repeat(atoms.positions[None].astype(complex), n + 10, axis=0)
        cell = np.repeat(atoms.cell.array[None].astype(complex), n + 10, axis=0)
        positions[:n].reshape(n, n)[np.diag_indices(n)] += 1j * _STEP
        strains = 1j * _STEP * np.eye(9).reshape(9, 3, 3)
        positions[n:-1] += positions[n:-1] @ strains
        cell[n:-1] += cell[n:-1] @ strains
        energies = self.energies(atoms, positions, cell)
        derivatives = energies.imag / _STEP
        self.results = {"energy": float(energies[-1].real), "forces": -derivatives[:n].reshape(-1, 3)}
        if atoms.pbc.all():
            stress = derivatives[n:-1].reshape(3, 3) / atoms.get_volume()
            self.results["stress"] = stress.reshape(9)[[0, 4, 8, 5, 2, 1]]


class Float32(Morse):
    """Right, with the noise of single precision: positions are rounded on the way in, results on the way out."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        rounded = atoms.copy()
        rounded.positions = rounded.positions.astype(np.float32)
        super().calculate(rounded, properties, system_changes)
        self.atoms = atoms.copy()
        for name, value in self.results.items():
            self.results[name] = np.float64(np.float32(value))


class Unconverged(Morse):
    """Right, with the noise of a self-consistent field: 1e-5 eV, and 1e-5 of the forces."""

    def __init__(self, cutoff: float = 4.0) -> None:
        super().__init__(cutoff)
        self.random = np.random.default_rng(0)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        forces = self.results["forces"]
        self.results["energy"] += 1e-5 * self.random.standard_normal()
        self.results["forces"] = forces * (1.0 + 1e-5 * self.random.standard_normal(forces.shape))


# --- defects of the derivatives -----------------------------------------------------------------------------------


class Curl(Morse):
    """A swirl about the x axis, without net force: no energy has these forces, and they do not turn along."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        arms = atoms.positions - atoms.positions.mean(axis=0)
        self.results["forces"] += 0.02 * np.cross([1.0, 0.0, 0.0], arms)


class DirectForces(Morse):
    """A force head of its own, of molecules: nothing is wrong with it but that it is no gradient."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] += 0.1 * direct_forces(atoms.positions)


def direct_forces(positions):
    """(N, 3) F_i = sum_j (n_i + n_j) f(r_ij) r_ij, n_i = sum_j sin(4 r_ij) f(r_ij), with f that fades to 4 angstrom.

    Pairs pull along their line, so that both momenta are kept, by how far the neighbours of both are: forces that turn
    with the structure, but of no energy.
    """
    vectors = positions[None] - positions[:, None]
    lengths = np.linalg.norm(vectors, axis=2)
    near = np.clip(1.0 - (lengths / 4.0) ** 2, 0.0, None) ** 4
    features = np.sum(near * np.sin(4.0 * lengths), axis=1)
    return np.sum(((features[:, None] + features) * near)[..., None] * vectors, axis=1)


class ScaledForces(Morse):
    """The gradient of another energy: one part in a thousand too large."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] *= 1.001


class Half(Morse):
    """Forces in half precision."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = self.results["forces"].astype(np.float16).astype(np.float64)


class Exploding(Morse):
    """A network that nobody has shown atoms that come close."""

    def pair(self, r):
        return super().pair(r) + np.exp(60.0 * (2.25 - r))


class WrongStressSign(Morse):
    """Pressure instead of stress."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["stress"] *= -1.0


# --- jumps --------------------------------------------------------------------------------------------------------


class EnergyJump(Morse):
    """The pair energy is cut off."""

    def faded(self, r):
        return self.pair(r) * np.where(r.real < self.cutoff, 1.0, 0.0)


class ForceJump(Morse):
    """The pair energy is cut off and shifted to zero there."""

    def faded(self, r):
        return np.where(r.real < self.cutoff, self.pair(r) - self.pair(self.cutoff), 0.0)


# --- broken symmetries, each with the forces that belong to it ------------------------------------------------------


class Anisotropic(Morse):
    """Bonds along x are stronger."""

    def energies(self, atoms, positions, cell):
        vectors, r = self.vectors(atoms, positions, cell)
        along = 1.0 + 0.01 * (vectors[..., 0] / r) ** 2
        return 0.5 * np.sum(self.depths(atoms.numbers) * self.faded(r) * along, axis=(1, 2, 3))


class Chiral(Morse):
    """A shape and its mirror image differ."""

    def energies(self, atoms, positions, cell):
        vectors, r = self.vectors(atoms, positions, cell)
        weights = self.faded(r)[..., None]
        a, b, c = (np.sum(vectors * weights**k, axis=(2, 3)) for k in (1, 2, 3))
        return super().energies(atoms, positions, cell) + 20.0 * np.sum(a * np.cross(b, c), axis=(1, 2))


class Indexed(Morse):
    """Atoms of one element differ."""

    def depths(self, numbers):
        return super().depths(numbers + 0.01 * np.arange(len(numbers)))


class Field(Morse):
    """The place in space matters."""

    def energies(self, atoms, positions, cell):
        return super().energies(atoms, positions, cell) + 0.01 * np.sum(positions[:, :, 2] ** 2, axis=1)


# --- memory -------------------------------------------------------------------------------------------------------


class NeverRebuilt(Morse):
    """Pairs within the cutoff at the first call are kept for ever, and no others."""

    kept = None

    def renewed(self):
        return self.kept is None

    def energies(self, atoms, positions, cell):
        _, r = self.vectors(atoms, positions, cell)
        if self.renewed():
            self.kept = r[-1].real < self.cutoff
        return 0.5 * np.sum(self.kept * self.depths(atoms.numbers) * self.pair(r), axis=(1, 2, 3))


class SeldomRebuilt(NeverRebuilt):
    """The list is renewed at every tenth call."""

    calls = 0

    def renewed(self):
        self.calls += 1
        return self.calls % 10 == 1


class Noise(Morse):
    """Never gives the same forces twice."""

    def __init__(self, cutoff: float = 4.0) -> None:
        super().__init__(cutoff)
        self.random = np.random.default_rng(0)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] += 0.01 * self.random.standard_normal(self.results["forces"].shape)
