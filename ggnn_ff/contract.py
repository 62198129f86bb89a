"""What a potential says about itself: the contract that every file of it carries."""

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ggnn_ff.data.frames import MINUS
from ggnn_ff.errors import InputError, tell
from ggnn_ff.models import MODELS

FORMAT_VERSION = 1
LONGEST_CUTOFF = 100.0  # angstrom; no graph has such long edges, but files with wrong units do


class Part(BaseModel):
    """A part of the contract: complete, with no unknown keys and no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingData(Part):
    """What the potential was trained on."""

    name: str = Field(min_length=1)
    n_train: int = Field(ge=1)
    n_valid: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the training file")


class StartedFrom(Part):
    """The potential whose weights the training began with."""

    identity: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of its contract, as `Contract.identity`")
    level_of_theory: str = Field(min_length=1)
    training_data: TrainingData


class TestErrors(Part):
    """Errors on frames that were used neither for training nor for validation."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    n_frames: int = Field(ge=1)
    energy_mae_mev: float
    energy_rmse_mev: float
    energy_mae_mev_per_atom: float
    forces_mae_mev_per_angstrom: float
    forces_rmse_mev_per_angstrom: float


class Example(Part):
    """One structure and what the potential answers for it, so that any machine can check its copy."""

    numbers: list[int]
    positions: list[list[float]]
    cell: list[list[float]]
    pbc: list[bool]
    energy: float = Field(description="eV")
    forces: list[list[float]] = Field(description="eV/angstrom")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        n = len(self.numbers)
        shapes = {"positions": (n, 3), "forces": (n, 3), "cell": (3, 3)}
        for name, shape in shapes.items():
            rows = getattr(self, name)
            if (len(rows), *{len(row) for row in rows}) != shape:
                raise ValueError(f"`{name}` must have the shape {shape}")
        if n == 0 or len(self.pbc) != 3 or not all(0 < number < len(chemical_symbols) for number in self.numbers):
            raise ValueError("`numbers` must be atomic numbers of at least one atom, and `pbc` three values")
        return self

    def atoms(self) -> Atoms:
        """The structure."""
        return Atoms(numbers=self.numbers, positions=np.array(self.positions), cell=self.cell, pbc=self.pbc)


class ExampleCertificate(Part):
    """Physical properties as measured on the example when the file was made, in float64."""

    finite_difference_relative_error: float = Field(description="max |F + dE/dx| / max |F|, central differences")
    rotation_energy_error_ev: float
    rotation_forces_error_ev_per_angstrom: float
    permutation_forces_error_ev_per_angstrom: float


class CertifiedFigure(Part):
    """One figure of a certification."""

    name: str
    value: float | None
    error: float | None
    unit: str
    threshold: float | None
    passed: bool | None


class Certification(Part):
    """What `ggnn-ff certify` found, dynamics included."""

    date: str
    package_version: str
    structure: str = Field(description="chemical formula of what was simulated")
    passed: bool
    protocol: dict[str, int | float | list[float]] | None = Field(
        default=None, description="how long, how hot, how often"
    )
    figures: list[CertifiedFigure]


class Surroundings(Part):
    """What the surroundings of the atoms of one element look like in the training data, as `domain` describes them."""

    mean: str = Field(description="F numbers: the mean of the descriptor")
    whitening: list[str] = Field(description="row k has k + 1 numbers, of the lower triangle that whitens it")

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean (F,) and the lower triangle (F, F)."""
        mean = np.array(self.mean.split(), dtype=np.float64)
        triangle = np.zeros((len(mean), len(mean)))
        triangle[np.tril_indices(len(mean))] = np.array(" ".join(self.whitening).split(), dtype=np.float64)
        return mean, triangle

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.whitening) != len(self.mean.split()):
            raise ValueError(f"`whitening` needs a row for each of {len(self.mean.split())} numbers of the mean")
        if any(len(row.split()) != k + 1 for k, row in enumerate(self.whitening)):
            raise ValueError("row k of `whitening` needs k + 1 numbers")
        if not all(np.isfinite(array).all() for array in self.arrays()):
            raise ValueError("`mean` and `whitening` must be finite")
        return self


class Domain(Part):
    """Where the training data lies: outside of it, nothing is known of the errors. Made and used by `domain`."""

    descriptor: str = Field(pattern="^gaussian-6-angular-2$", description="which functions of the positions")
    cutoff: float = Field(gt=0.0, description="angstrom")
    n_frames: int = Field(ge=1, description="of the training data, that ranges, means and covariances are from")
    n_held_out: int = Field(ge=1, description="validation frames that the threshold is from")
    distances: dict[str, tuple[float, float]] = Field(
        description="angstrom; the shortest and the longest distance within the cutoff of each pair of elements seen"
    )
    surroundings: dict[str, Surroundings]
    threshold: float = Field(gt=0.0, description="largest novelty in the held-out frames, times a margin")


class Contract(Part):
    """Everything needed to use the potential, and to know whether one should."""

    format_version: int
    package_version: str
    architecture: str
    hyperparameters: dict[str, int | float | str | bool]
    elements: list[str] = Field(min_length=1)
    cutoff: float = Field(gt=0.0, le=LONGEST_CUTOFF)
    dtype: str = Field(pattern="^float(32|64)$")
    length_unit: str = Field(pattern="^angstrom$")
    energy_unit: str = Field(pattern="^eV$")
    level_of_theory: str = Field(min_length=1)
    training_data: TrainingData
    test_errors: TestErrors | None
    example: Example
    certificate: ExampleCertificate
    certification: Certification | None = None
    domain: Domain | None = None
    started_from: StartedFrom | None = None

    @field_validator("format_version")
    @classmethod
    def _known_format(cls, version: int) -> int:
        if version != FORMAT_VERSION:
            raise ValueError(f"this package reads format {FORMAT_VERSION}; a newer ggnn-ff is needed for {version}")
        return version

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(f"known architectures are {', '.join(MODELS)}; a newer ggnn-ff is needed for {name}")
        return name

    @field_validator("hyperparameters")
    @classmethod
    def _fit_the_architecture(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "architecture" in info.data:
            MODELS[info.data["architecture"]].hyperparameters(**values)
        return values

    @field_validator("elements")
    @classmethod
    def _are_elements(cls, elements: list[str]) -> list[str]:
        unknown = [symbol for symbol in elements if symbol not in chemical_symbols[1:]]
        if unknown:
            raise ValueError(f"not chemical symbols: {unknown}")
        return elements

    @field_validator("domain")
    @classmethod
    def _of_these_elements(cls, domain: Domain | None, info: ValidationInfo) -> Domain | None:
        elements = info.data.get("elements", [])
        if domain is not None and list(domain.surroundings) != elements:
            raise ValueError(f"describes {list(domain.surroundings)}, not the elements {elements}")
        if domain is not None:
            if strange := [pair for pair in domain.distances if not set(pair.split("-")) <= set(elements)]:
                raise ValueError(f"has distances of {', '.join(strange)}, not of the elements {elements}")
            if len({len(one.mean.split()) for one in domain.surroundings.values()}) > 1:
                raise ValueError("describes surroundings of different elements by different numbers of functions")
        return domain

    def to_json(self) -> str:
        """As text; without the parts that were added later where it has none, as before there were any."""
        later = {name for name in ("certification", "domain", "started_from") if getattr(self, name) is None}
        return self.model_dump_json(indent=1, exclude=later)

    @property
    def identity(self) -> str:
        """SHA-256 of everything but the certification and the domain, which do not change what is computed."""
        bare = self.model_copy(update={"certification": None, "domain": None})
        return hashlib.sha256(bare.to_json().encode()).hexdigest()


def parse_contract(text: str | bytes, source: str | Path) -> Contract:
    """Reads and validates.

    Raises:
        InputError: naming `source` and each field that is missing or wrong.
    """
    try:
        content: Any = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{source} holds no readable contract ({error}); it is truncated or not a potential"
        ) from error
    try:
        return Contract.model_validate(content)
    except ValidationError as error:
        items = [f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}" for item in error.errors()]
        raise InputError(
            f"{source} has an incomplete or foreign contract and is refused:\n  " + "\n  ".join(items)
        ) from error


def check_elements(contract: Contract, numbers: np.ndarray) -> None:
    """Refuses atoms that the potential was not trained on.

    Raises:
        InputError: naming the elements.
    """
    known = range(len(chemical_symbols))
    symbols = {chemical_symbols[n] if n in known else f"number {n}" for n in np.unique(numbers).tolist()}
    foreign = sorted(symbols - set(contract.elements))
    if foreign:
        raise InputError(
            f"`atoms` holds {', '.join(foreign)}, but this potential was trained on "
            f"{', '.join(contract.elements)} only; use a potential trained on these elements"
        )


def tell_of_contract(potential: str, contract: Contract) -> None:
    """Says once what a potential is used without: the method that it corrects, a certification, its data's domain."""
    if MINUS in contract.level_of_theory:
        engine = contract.level_of_theory.rpartition(MINUS)[2]
        tell(
            f"{potential} is of a difference, {contract.level_of_theory}, and describes no motion by itself; add it to "
            f"{engine}: in ASE with SumCalculator, for frames with `ggnn-ff label --correction`"
        )
    if contract.certification is None:
        tell(f"{potential} is not certified; `ggnn-ff certify` measures what it keeps in dynamics")
    elif not contract.certification.passed:
        tell(f"{potential} did not pass its certification; `ggnn-ff info` shows why")
    if contract.domain is None:
        tell(f"{potential} does not describe its training data, so that runs cannot tell when they leave it")
