"""Quantum-chemistry engines that label structures, as ASE calculators."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version

from ase import Atoms
from ase.calculators.calculator import Calculator

from ggnn_ff.data.dft import DensityFunctional
from ggnn_ff.errors import InputError, nearest

ENGINES = "gfn2-xtb, or a density functional and a basis set such as PBE/def2-SVP"  # for people
_TIGHT_BINDING = {"gfn2-xtb": "GFN2-xTB"}  # name -> level of theory


def engine_level(engine: str) -> str:
    """The level of theory of an engine: GFN2-xTB of "gfn2-xtb"; "PBE/def2-SVP" is its own name.

    Raises:
        InputError: no such engine.
    """
    if engine in _TIGHT_BINDING:
        return _TIGHT_BINDING[engine]
    functional, _, basis = engine.partition("/")
    if not functional or not basis:
        raise InputError(f"`engine` must be {ENGINES}, got '{engine}'{nearest(engine, _TIGHT_BINDING)}")
    return engine


def engine_calculator(engine: str = "gfn2-xtb") -> Calculator:
    """A fresh, silent ASE calculator of an engine: energy in eV, forces in eV/angstrom.

    Charge and unpaired electrons are taken from the initial charges and magnetic moments of the atoms.

    Raises:
        InputError: no such engine, or it is not installed.
    """
    level = engine_level(engine)
    if engine not in _TIGHT_BINDING:
        functional, _, basis = engine.partition("/")
        return DensityFunctional(functional, basis)
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise InputError(
            f"`engine`: {engine} needs tblite, which cannot be imported ({error}). Install it with "
            'pip install "ggnn-ff[sample]"; if libgomp is missing, install the system package libgomp1'
        ) from error
    return TBLite(method=level, verbosity=0)


def engine_version(engine: str) -> str:
    """Such as "tblite 0.4.0"; results are reproducible only with the same one."""
    engine_calculator(engine)
    program = "tblite" if engine in _TIGHT_BINDING else "pyscf"
    return f"{program} {version(program)}"


def check_electrons(atoms: Atoms) -> None:
    """Raises if the charge and the unpaired electrons of a structure contradict its number of electrons.

    Raises:
        InputError: naming all three, or an entry of `atoms.info` that says something else than the atoms.
    """
    charge = round(float(atoms.get_initial_charges().sum()))
    unpaired = round(float(atoms.get_initial_magnetic_moments().sum()))
    for names, value, column in (
        (("charge", "total_charge"), charge, "initial_charges"),
        (("spin", "multiplicity", "spin_multiplicity"), unpaired + 1, "initial_magmoms"),
    ):
        for name in [name for name in names if name in atoms.info]:
            said = atoms.info[name]
            if said != value and not (name == "spin" and said in (unpaired, 0.5 * unpaired)):
                raise InputError(
                    f"`structure`: {atoms.get_chemical_formula()} says {name}={said}, but its atoms say {value}; the "
                    f"engine goes by the atoms: give the column {column} (ASE: atoms.set_{column}), or remove {name}"
                )
    electrons = int(atoms.numbers.sum()) - charge
    if (electrons - unpaired) % 2:
        raise InputError(
            f"`structure`: {atoms.get_chemical_formula()} of charge {charge} has {electrons} electrons, of "
            f"which {unpaired} cannot be unpaired; set its initial charges or magnetic moments, or complete "
            "its hydrogens"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets OpenMP regions entered from this thread run on one thread.

    With several, engines add numbers in an order that changes from run to run, and trajectories from the same
    seed part. For small molecules one thread is also the fastest.

    Raises:
        InputError: where the number of threads cannot be set from here and is not already one.
    """
    if os.environ.get("OMP_NUM_THREADS") == "1":
        yield
        return
    try:
        openmp = ctypes.CDLL("libgomp.so.1")
    except OSError as error:
        raise InputError(
            "sampling must run on one OpenMP thread to be reproducible, and the OpenMP library cannot be "
            "told so on this system; set the environment variable OMP_NUM_THREADS=1"
        ) from error
    before = openmp.omp_get_max_threads()
    openmp.omp_set_num_threads(1)
    try:
        with _pyscf_on_one_thread():
            yield
    finally:
        openmp.omp_set_num_threads(before)


def _pyscf_on_one_thread() -> AbstractContextManager[object]:
    """PySCF, where it has been imported, brings an OpenMP library of its own."""
    if "pyscf" not in sys.modules:
        return nullcontext()
    from pyscf import lib

    return lib.with_omp_threads(1)
