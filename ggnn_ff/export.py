"""Potentials on disk: the durable form (weights and contract) and the TorchScript file made from it."""

import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from ase import Atoms
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ggnn_ff.contract import (
    Certification,
    Contract,
    Domain,
    check_elements,
    parse_contract,
)
from ggnn_ff.errors import InputError, nearest
from ggnn_ff.files import holding, write_atomically, write_together
from ggnn_ff.forces import EnergyForces, Prediction
from ggnn_ff.graph import Structure, from_atoms
from ggnn_ff.models import MODELS
from ggnn_ff.neighbors import neighbor_list
from ggnn_ff.potential import Potential, set_dtype

WEIGHTS, CONTRACT, TORCHSCRIPT = "weights.safetensors", "potential.json", "potential.pt"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Largest difference that two correct evaluations show (eV, eV/angstrom): rounding in the dtype of the features.
TOLERANCE = {"float32": (1e-4, 1e-3), "float64": (1e-6, 1e-5)}


M = TypeVar("M", bound=nn.Module)
Neighbors = Callable[[Structure], tuple[Tensor, Tensor]]
"""A structure -> its edges and their shifts, as from `neighbor_list`."""


@dataclass(frozen=True)
class LoadedPotential:
    """A potential ready to be evaluated.

    Attributes:
        module: `EnergyForces`, eager or scripted, in evaluation mode and without gradients of parameters.
        contract: what it is.
        source: where it comes from.
        dtype: "float32" or "float64", what it computes in now.
        device: where it lives.
    """

    module: nn.Module
    contract: Contract
    source: str
    dtype: str
    device: torch.device

    def evaluate(self, atoms: Atoms) -> Prediction:
        """Energy, forces and stress of one structure, in eV and angstrom, on the CPU.

        Raises:
            InputError: an empty, broken or periodic-without-cell structure, or an element that it does not know.
        """
        check_elements(self.contract, atoms.numbers)
        return evaluate(self.module, atoms, self.contract.cutoff, self.device)

    def __getstate__(self) -> dict[str, Any]:
        """TorchScript as bytes: it has no form for pickle, which takes calculators to other processes."""
        if not isinstance(self.module, torch.jit.ScriptModule):
            return self.__dict__
        return {**self.__dict__, "module": self.module.save_to_buffer()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["module"], bytes):
            module = torch.jit.load(io.BytesIO(state["module"]), map_location=state["device"])
            state = {**state, "module": ready(module)}
        self.__dict__.update(state)

    @torch.inference_mode(False)
    def predict(self, structure: Structure, neighbors: Neighbors) -> Prediction:
        """As `evaluate`, of structures whose edges come from `neighbors`, such as a `SkinNeighborList`."""
        return _predict(self.module, structure, neighbors, self.device)


@torch.inference_mode(False)  # forces are a gradient, also where the caller has switched gradients off
def evaluate(module: nn.Module, atoms: Atoms, cutoff: float, device: torch.device) -> Prediction:
    """Structure, neighbour list, energy and forces: the whole way for one structure."""
    return _predict(module, from_atoms(atoms), partial(neighbor_list, cutoff=cutoff), device)


def _predict(module: nn.Module, structure: Structure, neighbors: Neighbors, device: torch.device) -> Prediction:
    edge_index, shifts = neighbors(structure)
    tensors = (structure.positions, structure.numbers, structure.cell, edge_index, shifts, structure.batch)
    if device.type == "cpu":
        return module(*tensors, structure.n_structures)
    prediction = module(*(tensor.to(device) for tensor in tensors), structure.n_structures)
    return Prediction(*(tensor.cpu() for tensor in prediction))


def write_potential(folder: Path, potential: Potential, contract: Contract) -> None:
    """Writes the durable form: `weights.safetensors` and `potential.json`.

    A certification stays where `folder` holds the same potential already.

    Raises:
        OSError: the disk is full or not writable; older files are unchanged.
    """
    if contract.certification is None and (folder / CONTRACT).exists():
        with suppress(InputError):  # damaged
            before = parse_contract((folder / CONTRACT).read_bytes(), folder / CONTRACT)
            if before.identity == contract.identity:
                contract = contract.model_copy(update={"certification": before.certification})
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in potential.state_dict().items()}
    content = {WEIGHTS: save(weights), CONTRACT: (contract.to_json() + "\n").encode()}
    write_together({folder / name: holding(data) for name, data in content.items()})


@torch.inference_mode(False)
def export_torchscript(folder: Path, output: Path) -> LoadedPotential:
    """Makes the TorchScript file from the durable form, and checks that both give the same numbers.

    The file needs torch only: `torch.jit.load` gives a module with the arguments of `EnergyForces.forward`.

    Args:
        folder: with the durable form (a training run).
        output: such as `potential.pt`.

    Raises:
        InputError: `folder` holds no complete potential, or TorchScript computes it differently; nothing is written.
        OSError: the file cannot be written; an older one is unchanged.
    """
    if not folder.is_dir():
        came = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"`run` must be the folder of a training, got {folder}, which {came}; give that folder")
    eager = _load_durable(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit")  # deprecated from torch 2.10 on
        data = torch.jit.script(eager.module).save_to_buffer(_extra_files={CONTRACT: eager.contract.to_json()})
        copy = torch.jit.load(io.BytesIO(data))
    _verify(replace(eager, module=ready(copy), source=f"the TorchScript form of {folder}"))
    write_atomically(output, holding(data))
    return load_potential(output)


def write_certification(name_or_path: str | Path, certification: Certification) -> list[Path]:
    """Adds a certification to the contract of a potential on disk, in place of an older one; else as `write_domain`."""
    return _write_part(name_or_path, "certification", certification)


def write_domain(name_or_path: str | Path, domain: Domain) -> list[Path]:
    """Adds a description of the training data to the contract of a potential on disk, in place of an older one.

    Args:
        name_or_path: as for `load_potential`; a folder gets it in both forms that it may hold.
        domain: from `describe_frames`, with the frames and the cutoff of its training.

    Returns:
        The files that were written.

    Raises:
        InputError: no such potential, or a description of other elements.
        OSError: a file cannot be written; it is unchanged then.
    """
    return _write_part(name_or_path, "domain", domain)


def _write_part(name_or_path: str | Path, name: str, part: Certification | Domain) -> list[Path]:
    path = _find(name_or_path)
    folder = path.parent if str(name_or_path) in shipped_potentials() and path.is_file() else path
    written = []
    if folder.is_dir() and (folder / CONTRACT).is_file():
        contract = parse_contract((folder / CONTRACT).read_bytes(), folder / CONTRACT)
        data = (_with(contract, name, part).to_json() + "\n").encode()
        write_atomically(folder / CONTRACT, holding(data))
        written.append(folder / CONTRACT)
    script = folder / TORCHSCRIPT if folder.is_dir() else path
    if script.is_file():
        loaded = _load_torchscript(script)
        text = _with(loaded.contract, name, part).to_json()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit")
            data = loaded.module.save_to_buffer(_extra_files={CONTRACT: text})  # type: ignore[operator]
        write_atomically(script, holding(data))
        written.append(script)
    return written


def _with(contract: Contract, name: str, part: Certification | Domain) -> Contract:
    """Another part in a contract, validated as when it is read."""
    return parse_contract(contract.model_copy(update={name: part}).to_json(), f"the new `{name}`")


@torch.inference_mode(False)
def load_potential(name_or_path: str | Path, device: str = "cpu", dtype: str | None = None) -> LoadedPotential:
    """Loads a shipped potential by name, a TorchScript file, or a folder with the durable form.

    Each load evaluates the example of the contract and compares, so that a wrong or damaged copy is found at once: on
    the CPU in the dtype of training, and again on the device and in the dtype asked for where those are others.

    A TorchScript file is a program that torch runs: it is refused if it is no potential, but what it runs is not
    confined. Take potentials from people you do not know as a folder (`weights.safetensors`, `potential.json`), which
    holds numbers and text only, and export the `.pt` yourself.

    Args:
        name_or_path: such as "ethanol-pbe", "potential.pt" or a training run.
        device: such as "cpu" or "cuda".
        dtype: "float32" or "float64" to compute in; by default what it was trained in.

    Raises:
        InputError: no such potential, not a potential, damaged, computed wrongly, or an unknown device or dtype.
    """
    path = _find(name_or_path)
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"`dtype` must be 'float32' or 'float64' (a string), got {dtype!r}")
    loaded = _load_durable(path) if path.is_dir() else _load_torchscript(path)
    _verify(loaded)
    try:
        target = torch.device(device)
        loaded.module.to(target)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"`device` must be usable by torch, got {device!r}: {str(error).splitlines()[0]}") from error
    if dtype is not None:
        set_dtype(loaded.module.potential, DTYPES[dtype])  # type: ignore[arg-type]
    handed_out = replace(loaded, dtype=dtype or loaded.dtype, device=target)
    if (handed_out.dtype, handed_out.device) != (loaded.dtype, loaded.device):
        _verify(handed_out)
    return handed_out


def as_loaded(
    potential: str | Path | LoadedPotential, device: str = "cpu", dtype: str | None = None
) -> LoadedPotential:
    """As `load_potential`; what is loaded already is returned as it is.

    Raises:
        InputError: also a device or dtype that is not that of what is loaded already.
    """
    if not isinstance(potential, LoadedPotential):
        return load_potential(potential, device=device, dtype=dtype)
    if dtype not in (None, potential.dtype) or torch.device(device) not in (torch.device("cpu"), potential.device):
        raise InputError(
            f"`potential` was loaded as {potential.dtype} on {potential.device} already, got dtype={dtype!r} and "
            f"device={device!r}; give them to load_potential instead"
        )
    return potential


def shipped_potentials() -> dict[str, Path]:
    """Name and folder of each potential that ships with the package."""
    installed = Path(__file__).parent / "shipped"
    folder = installed if installed.is_dir() else Path(__file__).parent.parent / "potentials"
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{CONTRACT}"))}


def _find(name_or_path: str | Path) -> Path:
    path, shipped = Path(name_or_path), shipped_potentials()
    if str(name_or_path) in shipped and not path.exists():
        folder = shipped[str(name_or_path)]
        return folder / TORCHSCRIPT if (folder / TORCHSCRIPT).exists() else folder
    if path.exists():
        return path
    raise InputError(
        f"`potential` must be a file, a folder or the name of a shipped potential ({', '.join(shipped) or 'none'}), "
        f"got '{name_or_path}'{nearest(str(name_or_path), shipped)}"
    )


def ready(module: M) -> M:
    """A module for evaluation: in evaluation mode, without gradients of parameters."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def without_weights(contract: Contract, dtype: str) -> Potential:
    """The architecture of a contract, with random weights that are to be replaced."""
    hyperparameters = MODELS[contract.architecture].hyperparameters(**contract.hyperparameters)
    with torch.random.fork_rng(devices=[]):
        return Potential(contract.architecture, hyperparameters, contract.cutoff, contract.elements, DTYPES[dtype])


def _load_durable(folder: Path) -> LoadedPotential:
    for name in (CONTRACT, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(
                f"`potential` folder {folder} must hold {name}, which is missing; has the training finished?"
            )
    contract = parse_contract((folder / CONTRACT).read_bytes(), folder / CONTRACT)
    potential = without_weights(contract, contract.dtype)
    try:
        potential.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS} does not fit its contract; it is damaged or foreign: {error}") from error
    return LoadedPotential(ready(EnergyForces(potential)), contract, str(folder), contract.dtype, torch.device("cpu"))


def _load_torchscript(path: Path) -> LoadedPotential:
    extra = {CONTRACT: ""}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit")
            module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"`potential` {path} is not a TorchScript file or is truncated ({str(error).splitlines()[0]}); export it "
            "again with `ggnn-ff export RUN -o potential.pt`, or copy it again"
        ) from error
    if not extra[CONTRACT]:
        raise InputError(
            f"`potential` {path} is TorchScript but carries no contract; it was not written by `ggnn-ff export` and is "
            "refused, since its units, elements and cutoff are unknown"
        )
    contract = parse_contract(extra[CONTRACT], path)
    return LoadedPotential(ready(module), contract, str(path), contract.dtype, torch.device("cpu"))


def _verify(loaded: LoadedPotential) -> None:
    example = loaded.contract.example
    try:
        answer = loaded.evaluate(example.atoms())
    except RuntimeError as error:
        raise InputError(
            f"{loaded.source} cannot be evaluated; it is not a potential or is damaged: {error}"
        ) from error
    energy_error = abs(float(answer.energy[0]) - example.energy)
    forces_error = float(np.abs(answer.forces.numpy() - np.array(example.forces)).max())
    coarser = "float32" if "float32" in (loaded.dtype, loaded.contract.dtype) else "float64"  # the stored answer's too
    energy_limit, forces_limit = TOLERANCE[coarser]
    if not (energy_error <= energy_limit and forces_error <= forces_limit):
        raise InputError(
            f"{loaded.source} does not reproduce the example in its contract, in {loaded.dtype} on {loaded.device} "
            f"(energy off by {energy_error:.2e} eV, forces by {forces_error:.2e} eV/angstrom); the file is damaged, or "
            f"torch {torch.__version__} computes it wrongly"
        )
