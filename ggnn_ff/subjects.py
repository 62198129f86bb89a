"""What can be certified: potentials, and other programs' calculators by name."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ase.calculators.calculator import Calculator

from ggnn_ff.data.engines import ENGINES, engine_calculator, engine_level
from ggnn_ff.errors import InputError
from ggnn_ff.export import LoadedPotential, load_potential
from ggnn_ff.hosts.ase import GGNNCalculator


@dataclass(frozen=True)
class Subject:
    """What is certified.

    Attributes:
        name: for people.
        exact: its calculator in float64, for what is measured on single structures.
        fresh: another one like `exact`.
        used: what a user runs dynamics with: a potential, or a calculator.
    """

    name: str
    exact: Calculator
    fresh: Calculator
    used: LoadedPotential | Calculator


def potential_subject(name_or_path: str | Path) -> Subject:
    """A potential, under the name that it is given by; takes and raises what `load_potential` does."""
    in_float64 = load_potential(name_or_path, dtype="float64")
    exact, fresh = (GGNNCalculator(in_float64, compile=False) for _ in range(2))
    return Subject(str(name_or_path), exact, fresh, load_potential(name_or_path))


def calculator_subject(name: str) -> Subject:
    """A calculator by name: `gfn2-xtb` (or `xtb`), a functional and a basis set, or `mace:FILE`, a model of mace-torch.

    Files of mace-torch are pickled and run code when they are loaded: give only those of people you trust.

    Raises:
        InputError: no such calculator, or it is not installed.
    """
    name = "gfn2-xtb" if name == "xtb" else name
    kind, _, path = name.partition(":")
    if kind != "mace" and (name == "gfn2-xtb" or "/" in name):
        return Subject(engine_level(name), *(engine_calculator(name) for _ in range(3)))
    if kind != "mace" or not path:
        raise InputError(f"`calculator` must be {ENGINES}, or mace:FILE, got {name!r}")
    if not Path(path).is_file():
        raise InputError(f"`calculator` must name a file that exists after mace:, got {path}")
    try:
        from mace.calculators import MACECalculator
    except ImportError as error:
        raise InputError(f"`calculator` mace needs mace-torch, which cannot be imported ({error})") from error
    calculator, fresh = (MACECalculator(model_paths=path, device="cpu", default_dtype="float64") for _ in range(2))
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    calculator.parameters["model_sha256"] = digest  # parameters tell runs with one calculator from those with another
    return Subject(f"mace-torch {path}", calculator, fresh, calculator)
