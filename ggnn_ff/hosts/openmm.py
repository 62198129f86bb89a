"""The potential as an OpenMM force: a TorchForce, or a PythonForce on any torch."""

import logging
import operator
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from ggnn_ff.compiled import EDGES_PER_THREAD, CompiledEnergyForces, fast_form
from ggnn_ff.contract import check_elements
from ggnn_ff.errors import InputError
from ggnn_ff.export import LoadedPotential, as_loaded
from ggnn_ff.kernels.host import make_edges
from ggnn_ff.locks import Lock
from ggnn_ff.neighbors import SHORTEST_DISTANCE, SKIN, make_neighbor_list, spread_too_far
from ggnn_ff.units import ANGSTROM_PER_NANOMETER, EV_PER_KJ_PER_MOL

_LOADED_AGAIN: set[Path] = set()


class OpenMMModule(nn.Module):
    """Positions in nm in, energy in kJ/mol and forces in kJ/mol/nm out; what both backends call."""

    numbers: Tensor
    atoms: Tensor
    batch: Tensor

    def __init__(self, module: nn.Module, cutoff: float, numbers: Tensor, atoms: Tensor) -> None:
        """Prepares the evaluation of `atoms` (n,), indices among the particles, with `numbers` (n,)."""
        super().__init__()
        self.module = module
        self.cutoff = cutoff
        self.neighbors = make_neighbor_list(cutoff)
        self.register_buffer("numbers", numbers)
        self.register_buffer("atoms", atoms)
        self.register_buffer("batch", torch.zeros_like(numbers))
        self.angstrom = ANGSTROM_PER_NANOMETER
        self.kj_per_mol = 1.0 / EV_PER_KJ_PER_MOL

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Energy and forces on all particles.

        Args:
            positions: (n_particles, 3), nm, wrapped or not.
            box_vectors: (3, 3), nm, for periodic systems; OpenMM passes them.
        """
        x = positions.detach().to(torch.float64)[self.atoms] * self.angstrom
        if box_vectors is None:
            cell = torch.zeros(3, 3, dtype=torch.float64, device=x.device)
            periodic = False
        else:
            cell = box_vectors.to(torch.float64) * self.angstrom
            periodic = True
        _check_spread(x, cell, periodic, self.cutoff)
        pairs, shifts = self.neighbors.compute(x, cell, periodic, "PS")
        edge_index = pairs.t().to(torch.int64)
        out = self.module(x, self.numbers, cell.unsqueeze(0), edge_index, shifts.to(torch.float64), self.batch, 1)
        forces = torch.zeros(positions.shape[0], 3, dtype=torch.float64, device=x.device)
        forces = forces.index_copy(0, self.atoms, out.forces * (self.kj_per_mol * self.angstrom))
        return out.energy[0] * self.kj_per_mol, forces.to(positions.dtype)


class CompiledOpenMMModule(nn.Module):
    """As `OpenMMModule`, by the packages of a compiled potential; once it is TorchScript, without any Python.

    It works on the CPU, up to the packages, wherever OpenMM moves it: so its tensors are no buffers.
    """

    def __init__(self, loaded: LoadedPotential, numbers: Tensor, atoms: Tensor, periodic: bool) -> None:
        super().__init__()
        self.made_with = (loaded, numbers, atoms, periodic)
        self.atoms, self.numbers = atoms, numbers.to(loaded.device)
        self.in_order = atoms.tolist() == list(range(len(atoms)))
        self.edges = make_edges(loaded.contract.cutoff, SKIN, SHORTEST_DISTANCE)
        self.cutoff = loaded.contract.cutoff + SKIN
        self.neighbors = make_neighbor_list(self.cutoff)
        compiled = cast(CompiledEnergyForces, loaded.module)
        self.package = self.few = self.many = compiled.package(0)
        self.many_edges = EDGES_PER_THREAD * torch.get_num_threads()
        if periodic or len(numbers) * (len(numbers) - 1) >= self.many_edges:
            self.many = compiled.package(self.many_edges)
        self.angstrom = ANGSTROM_PER_NANOMETER
        self.kj_per_mol = 1.0 / EV_PER_KJ_PER_MOL

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledOpenMMModule, self.made_with

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `OpenMMModule.forward`."""
        x = positions.detach().to(self.atoms.device, torch.float64) * self.angstrom
        every = self.in_order and len(self.atoms) == len(positions)  # then nothing has to be taken out
        if not every:
            x = x[self.atoms]
        if box_vectors is None:
            cell = torch.zeros(3, 3, dtype=torch.float64)
            periodic = False
        else:
            cell = box_vectors.to(self.atoms.device, torch.float64) * self.angstrom
            periodic = True
        answer = self.edges.evaluate(self.package, x, self.numbers, cell)
        if answer is None:
            _check_spread(x, cell, periodic, self.cutoff)
            pairs, shifts = self.neighbors.compute(x, cell, periodic, "PS")
            n_edges = self.edges.list(x, cell, pairs, shifts)[0].shape[1]
            self.package = self.few if n_edges < self.many_edges else self.many
            answer = self.edges.evaluate(self.package, x, self.numbers, cell)
        assert answer is not None
        forces = answer[2] * (self.kj_per_mol * self.angstrom)
        if not every:
            forces = torch.zeros(len(positions), 3, dtype=torch.float64).index_copy(0, self.atoms, forces)
        energy = answer[0][0] * self.kj_per_mol
        return energy.to(positions.device), forces.to(positions.device, positions.dtype)


def _check_spread(x: Tensor, cell: Tensor, periodic: bool, cutoff: float) -> None:
    pbc = torch.full((3,), periodic, dtype=torch.bool, device=x.device)
    if spread_too_far(x, cell, pbc, cutoff):
        raise ValueError("atoms are too far apart for a neighbour list; the structure is broken")


class _Compute:
    """What a PythonForce calls with the state of the system."""

    def __init__(self, module: nn.Module, periodic: bool) -> None:
        self.module, self.periodic = module, periodic
        if isinstance(module, CompiledOpenMMModule):
            self.evaluate = _scripted(module).forward
        else:  # forces are a gradient, also where the caller has switched gradients off
            self.evaluate = torch.inference_mode(False)(module.forward)
        self.lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Compute, (self.module, self.periodic)

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        positions = torch.from_numpy(_in_nanometers(state.getPositions(asNumpy=True)))
        box = None
        if self.periodic:
            box = torch.from_numpy(_in_nanometers(state.getPeriodicBoxVectors(asNumpy=True)))
        with self.lock:
            energy, forces = self.evaluate(positions, box)
        return float(energy), forces.numpy()


def _in_nanometers(quantity: Any) -> np.ndarray:
    from openmm import unit

    if quantity.unit is unit.nanometer:  # else its value is copied with care, which takes time
        return quantity._value
    return quantity.value_in_unit(unit.nanometer)


def _scripted(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit")  # deprecated from torch 2.10 on
        return torch.jit.script(module)


def openmm_force(
    potential: str | Path | LoadedPotential,
    topology: Any,
    *,
    backend: str = "auto",
    atoms: list[int] | None = None,
    dtype: str | None = None,
    compile: bool | None = None,
) -> Any:
    """A force that gives the atoms of `topology` the energy of `potential`.

    Add it to an `openmm.System` with the masses of the same topology. It is periodic if the topology has box vectors,
    in the box of the context, which is a cube of 2 nm unless the system is given another:
    `system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())`.

    Args:
        potential: name of a shipped potential, path, or an object from `load_potential`.
        topology: `openmm.app.Topology`; each atom of the potential needs an element.
        backend: "torch" for an `openmmtorch.TorchForce`, "python" for an `openmm.PythonForce`, "auto" for the first
            where openmmtorch imports and otherwise, with a warning, the second.
        atoms: indices of the particles that the potential sees; by default all.
        dtype: "float32" or "float64"; for names and paths only.
        compile: to machine code, as in `GGNNCalculator`. A TorchForce of a compiled potential works in this process
            only. A compiled PythonForce can be written to XML and read elsewhere; one with compile=False cannot.

    Returns:
        The force.

    Raises:
        InputError: an unknown backend, atom, element or potential.
        ImportError: OpenMM, or for backend "torch" openmmtorch, cannot be imported; the message says what to do.
    """
    if backend not in ("auto", "torch", "python"):
        raise InputError(f"`backend` must be 'auto', 'torch' or 'python', got {backend!r}")
    loaded = as_loaded(potential, dtype=dtype)
    numbers, indices = _numbers(topology, atoms)
    check_elements(loaded.contract, numbers)
    if len(numbers) > 1:  # for which packages are made
        loaded = fast_form(loaded, compile)
    elements, chosen = torch.from_numpy(numbers), torch.from_numpy(indices)
    periodic = topology.getPeriodicBoxVectors() is not None
    module: nn.Module
    if isinstance(loaded.module, CompiledEnergyForces) and len(numbers) > 1:
        module = CompiledOpenMMModule(loaded, elements, chosen, periodic)
    else:
        plain = loaded.module.eager if isinstance(loaded.module, CompiledEnergyForces) else loaded.module
        if backend == "python" and loaded.device.type != "cpu":
            raise InputError(
                f"`potential` must be on the CPU for a PythonForce that is not compiled, got {loaded.device}; load it "
                "with device='cpu', or compile it"
            )
        module = OpenMMModule(plain, loaded.contract.cutoff, elements, chosen).eval()
    torch_force = _torch_force_class(backend)
    if torch_force is None:
        import openmm

        force = openmm.PythonForce(_Compute(module, periodic))
    else:
        force = torch_force(_scripted(module))
        force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def _torch_force_class(backend: str) -> Any:
    """`openmmtorch.TorchForce`, or None for a PythonForce."""
    if backend == "python":
        return None
    try:
        root = logging.getLogger()
        root.addFilter(_not_about_simtk)
        try:
            from openmmtorch import TorchForce
        finally:
            root.removeFilter(_not_about_simtk)
    except (ImportError, OSError) as error:
        message = (
            f"openmmtorch cannot be imported ({error}); openmmtorch 1.5 needs torch 2.9 in its CUDA build, which "
            f"runs without a GPU as well (`pip install 'ggnn-ff[openmm]'`); here torch is {torch.__version__}"
        )
        if backend == "torch":
            raise ImportError(f"{message}. backend='python' works without openmmtorch") from error
        warnings.warn(f"using an openmm.PythonForce, since {message}", stacklevel=3)
        return None
    _load_plugins_again()
    return TorchForce


def _not_about_simtk(record: logging.LogRecord) -> bool:
    """Keeps back a warning that openmmtorch causes by importing OpenMM under its old name."""
    return "simtk" not in record.getMessage()


def _load_plugins_again() -> None:
    """Loads the kernels of TorchForce where `import openmm` came before `import torch` and could not.

    They link to libraries that torch brings, which OpenMM does not find before torch is imported.
    """
    import openmm

    folder = Path(openmm.version.openmm_library_path) / "plugins"
    failures = " ".join(openmm.Platform.getPluginLoadFailures())
    for library in folder.glob("*OpenMMTorch*"):
        if library.name in failures and library not in _LOADED_AGAIN:
            with suppress(openmm.OpenMMException):  # those of other hardware still do not load
                openmm.Platform.loadPluginLibrary(str(library))
                _LOADED_AGAIN.add(library)


def _numbers(topology: Any, atoms: list[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (n,) and indices (n,) of the atoms that the potential sees."""
    particles = list(topology.atoms())
    try:
        indices = list(range(len(particles))) if atoms is None else [_index(one) for one in atoms]
    except TypeError as error:
        raise InputError(f"`atoms` must be indices, got {atoms}; of a mask, give those where it is true") from error
    if not indices:
        raise InputError("`atoms` must name at least one atom, got none" if particles else "`topology` has no atoms")
    if len(set(indices)) < len(indices) or not 0 <= min(indices) <= max(indices) < len(particles):
        raise InputError(f"`atoms` must be different indices from 0 to {len(particles) - 1}, got {indices}")
    bare = [i for i in indices if particles[i].element is None]
    if bare:
        raise InputError(
            f"`topology` must give an element to each atom of the potential, got none for atom {bare[0]} "
            f"('{particles[bare[0]].name}'); leave virtual sites out with `atoms`"
        )
    numbers = [particles[i].element.atomic_number for i in indices]
    return np.array(numbers, dtype=np.int64), np.array(indices, dtype=np.int64)


def _index(value: Any) -> int:
    """A whole number, whatever its type; neither a mask nor what would have to be rounded."""
    if isinstance(value, bool):
        raise TypeError("a boolean is no index")
    return operator.index(value)


def make_topology(atoms: Atoms) -> Any:
    """`openmm.app.Topology` of one residue with the elements and, if periodic, the box of `atoms`.

    Raises:
        InputError: `atoms` is periodic in some directions only, or its cell is not in OpenMM's reduced form.
    """
    from openmm import app, unit

    _check_box(atoms)
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for symbol in atoms.get_chemical_symbols():
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array / ANGSTROM_PER_NANOMETER * unit.nanometer)
    return topology


def _check_box(atoms: Atoms) -> None:
    """Raises where OpenMM would: its boxes are lower triangular, with no vector much longer than it has to be."""
    if not atoms.pbc.any():
        return
    if not atoms.pbc.all():
        raise InputError(
            f"`atoms` must be periodic in no or all directions in OpenMM, got pbc={atoms.pbc.tolist()}; set pbc, with "
            "vacuum in the cell where there is no neighbour, or use host 'ase'"
        )
    a, b, c = atoms.cell.array / ANGSTROM_PER_NANOMETER
    triangular = not (a[1] or a[2] or b[2]) and min(a[0], b[1], c[2]) > 0
    if not triangular or a[0] < 2 * max(abs(b[0]), abs(c[0])) or b[1] < 2 * abs(c[1]):
        raise InputError(
            "`atoms.cell` must have OpenMM's reduced form: vectors (ax, 0, 0), (bx, by, 0), (cx, cy, cz) with positive "
            f"ax, by, cz, |bx| and |cx| at most ax / 2, |cy| at most by / 2; got {atoms.cell.array.round(4).tolist()}. "
            "Rotate it with atoms.set_cell(atoms.cell.standard_form()[0], scale_atoms=True); if that is not enough, "
            "make it orthorhombic, or use host 'ase'"
        )
