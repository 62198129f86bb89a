"""Density functional theory by PySCF, as an ASE calculator of molecules."""

import warnings
from collections.abc import Iterator
from typing import Any

from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes

from ggnn_ff.errors import InputError

GRID_LEVEL = 2  # of PySCF; forces of ethanol change by 0.1 meV/angstrom with the next finer one
CONVERGED = 1e-8  # Hartree
_POINTS_AT_ONCE = 56 * 32  # of the grid: what these need stays in the cache of a core


class DensityFunctional(Calculator):
    """Kohn-Sham energy (eV) and forces (eV/angstrom) of a molecule; unrestricted where electrons are unpaired.

    Coulomb integrals are by density fitting, as other programs have it for such functionals; it changes the forces of
    ethanol by about 1 meV/angstrom. There is no dispersion correction but what the functional has itself.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE declares it so)

    def __init__(self, functional: str, basis: str) -> None:
        """Takes a functional and a basis set by the names that PySCF has for them, such as PBE and def2-SVP.

        Raises:
            InputError: PySCF is not installed, or has no such functional.
        """
        super().__init__()
        try:
            from pyscf import dft
        except ImportError as error:
            raise InputError(
                f"`engine`: {functional}/{basis} needs PySCF, which cannot be imported ({error}). Install it with "
                'pip install "ggnn-ff[dft]"'
            ) from error
        try:
            dft.libxc.parse_xc(functional)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"`engine`: PySCF has no functional '{functional}' ({error}); what has a slash in it is taken for a "
                f"functional and a basis set, such as PBE/def2-SVP, got {functional}/{basis}"
            ) from error
        self.parameters.update(functional=functional, basis=basis)

    def calculate(
        self, atoms: Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        """Called by ASE.

        Raises:
            InputError: a periodic structure, an element that the basis set does not have, or a functional of which a
                part, such as D3, is in a package that is not installed.
            CalculationFailed: no convergence.
        """
        super().calculate(atoms, properties, system_changes)
        from pyscf import dft, gto
        from pyscf.gto.basis import BasisNotFoundError

        if self.atoms.pbc.any():
            raise InputError(f"`structure` must be a molecule for PySCF, got one periodic in {self.atoms.pbc.tolist()}")
        unpaired = round(float(self.atoms.get_initial_magnetic_moments().sum()))
        basis = self.parameters["basis"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # where else a basis set may be had
                molecule = gto.M(
                    atom=list(zip(self.atoms.symbols, self.atoms.positions, strict=True)),
                    basis=basis,
                    ecp={symbol: basis for symbol in set(self.atoms.symbols) if _has_core_potential(basis, symbol)},
                    charge=round(float(self.atoms.get_initial_charges().sum())),
                    spin=unpaired,
                    verbose=0,
                )
        except BasisNotFoundError as error:
            raise InputError(f"`engine`: PySCF has no such basis set, or not for these elements: {error}") from error
        field = (dft.UKS if unpaired else dft.RKS)(molecule, xc=self.parameters["functional"]).density_fit()
        field._numint = _small_blocks(field._numint)
        field.grids.level, field.conv_tol = GRID_LEVEL, CONVERGED
        try:
            energy = field.kernel()
        except RuntimeError as error:  # a part of the functional is in another package
            name = f"{self.parameters['functional']}/{basis}"
            raise InputError(f"`engine`: {name} cannot be calculated by PySCF: {error}") from error
        if not field.converged:
            raise CalculationFailed(f"the density did not converge in {field.max_cycle} cycles")
        forces = -field.nuc_grad_method().kernel() * (units.Hartree / units.Bohr)
        self.results = {"energy": float(energy) * units.Hartree, "forces": forces}


def _has_core_potential(basis: str, symbol: str) -> bool:
    from pyscf.gto.basis import load_ecp

    try:
        return bool(load_ecp(basis, symbol))
    except RuntimeError:  # there is none of this name; of a basis set that there is not either, `gto.M` tells
        return False


def _small_blocks(integrator: Any) -> Any:
    """The same integrator over the grid, with blocks of points that fit the cache: two thirds of the time."""
    whole = integrator.block_loop

    def block_loop(*arguments: Any, blksize: int | None = None, **others: Any) -> Iterator[Any]:
        return whole(*arguments, blksize=blksize or _POINTS_AT_ONCE, **others)

    integrator.block_loop = block_loop
    return integrator
