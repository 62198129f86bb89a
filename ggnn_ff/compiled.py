"""Potentials compiled to machine code: energy, forces and stress by one AOTInductor package, kept in a cache."""

import hashlib
import os
import shutil
import tempfile
import warnings
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from safetensors.torch import save
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ggnn_ff.cache import cache_folder, machine, why_not_compile
from ggnn_ff.contract import Contract
from ggnn_ff.errors import InputError, tell
from ggnn_ff.export import TOLERANCE, LoadedPotential, evaluate, ready, without_weights
from ggnn_ff.files import write_atomically
from ggnn_ff.forces import EnergyForces, Prediction, stress_of
from ggnn_ff.graph import Graph, from_atoms
from ggnn_ff.kernels import sums, tables, with_kernels
from ggnn_ff.kernels.build import load_operators
from ggnn_ff.kernels.host import load_package
from ggnn_ff.locks import Lock
from ggnn_ff.memory import keep_freed_memory
from ggnn_ff.neighbors import neighbor_list

EDGES_PER_THREAD = 128  # with so many for each, a package that uses all threads of torch; with fewer they would wait
FEWEST_EDGES = 4  # of a package; hosts add some that are too long to count
REVISION = 8  # of the way packages are made; those of another are made anew


class AtomicEnergies(nn.Module):
    """A potential as a function of tensors alone."""

    def __init__(self, potential: nn.Module) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, numbers: Tensor, edge_index: Tensor, edge_vectors: Tensor) -> Tensor:
        """(N,), (2, E) and (E, 3) -> energies of the atoms, (N,), eV."""
        _, atomic_energies = self.potential(Graph(numbers, edge_index, edge_vectors, torch.zeros_like(numbers), 1))
        return atomic_energies


class Core(nn.Module):
    """What is compiled: from positions and edges to energies of atoms, forces and the gradient for the virial.

    Structures do not occur in it: a sum over the atoms of each is left to `CompiledEnergyForces`, so that one package
    serves one structure and many.
    """

    def __init__(self, atomic_energies: nn.Module) -> None:
        super().__init__()
        self.atomic_energies = atomic_energies

    def forward(
        self, positions: Tensor, numbers: Tensor, edge_index: Tensor, offsets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energies (N,), forces (N, 3), dE/dr (E, 3); `offsets` (E, 3) are those of the neighbours' cells, angstrom."""
        centre, neighbour = edge_index[0], edge_index[1]
        vectors = (positions[neighbour] - positions[centre] + offsets).requires_grad_(True)
        atomic_energies = self.atomic_energies(numbers, edge_index, vectors)
        (gradient,) = torch.autograd.grad([atomic_energies.sum()], [vectors])
        forces = torch.zeros_like(positions)
        forces = forces.index_add(0, centre, gradient).index_add(0, neighbour, gradient, alpha=-1.0)
        return atomic_energies.detach(), forces, gradient


class CompiledEnergyForces(nn.Module):
    """Called as `EnergyForces`, with the same numbers apart from rounding; packages are made when first needed.

    One for small molecules, on one thread, and one for `EDGES_PER_THREAD` and more for each thread, on all of torch's.
    """

    def __init__(self, eager: EnergyForces, loaded: LoadedPotential) -> None:
        super().__init__()
        self.eager = eager
        self.loaded = loaded
        self.packages: dict[bool, Any] = {}
        self.lock = Lock()  # for who makes a package

    def forward(
        self,
        positions: Tensor,
        numbers: Tensor,
        cell: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        n_structures: int,
    ) -> Prediction:
        """As `EnergyForces.forward`."""
        if positions.shape[0] < 2 or edge_index.shape[1] < FEWEST_EDGES:  # the graph is for more
            return self.eager(positions, numbers, cell, edge_index, shifts, batch, n_structures)
        periodic = any(cell.flatten().tolist())  # quicker than `cell.any()` for a few structures
        offsets = torch.einsum("ea,eab->eb", shifts, cell[batch[edge_index[0]]]) if periodic else shifts  # zeros
        inputs = [positions.contiguous(), numbers, edge_index.contiguous(), offsets.contiguous()]
        atomic_energies, forces, gradient = self.package(edge_index.shape[1]).run(inputs)
        energy = total_energies(atomic_energies, batch, n_structures)
        stress = torch.zeros_like(cell)
        if periodic:
            stress = stress_of_edges(cell, batch, positions, edge_index, offsets, gradient)
        return Prediction(energy, atomic_energies, forces, stress)

    def __getstate__(self) -> dict[str, Any]:
        """Without packages, which another process takes from the cache."""
        return {**self.__dict__, "packages": {}}

    def package(self, n_edges: int) -> Any:
        """The package for so many edges: from memory, the cache, or made now; if that fails, the one that there is."""
        many = torch.get_num_threads() > 1 and n_edges >= EDGES_PER_THREAD * torch.get_num_threads()
        if many in self.packages:
            return self.packages[many]
        with self.lock:
            try:
                self.packages[many] = _cached(self.eager, self.loaded, torch.get_num_threads() if many else 1)
            except Exception as error:  # of a compiler, a full disk, torch
                if False not in self.packages:
                    raise
                tell(f"{self.loaded.source} goes on with one thread, for larger systems as well: {error}")
                self.packages[many] = self.packages[False]
        return self.packages[many]


def total_energies(atomic_energies: Tensor, batch: Tensor, n_structures: int) -> Tensor:
    """Sums (S,) of the energies of atoms (N,)."""
    if n_structures == 1:
        return atomic_energies.sum(0, keepdim=True)
    return atomic_energies.new_zeros(n_structures).index_add(0, batch, atomic_energies)


def stress_of_edges(
    cell: Tensor, batch: Tensor, positions: Tensor, edge_index: Tensor, offsets: Tensor, gradient: Tensor
) -> Tensor:
    """Stress (S, 3, 3) from dE/dr (E, 3) of edges with the offsets (E, 3) of their neighbours' cells."""
    vectors = positions[edge_index[1]] - positions[edge_index[0]] + offsets
    products = vectors.unsqueeze(2) * gradient.unsqueeze(1)  # (E, 3, 3)
    return stress_of(torch.zeros_like(cell).index_add(0, batch[edge_index[0]], products), cell)


def compile_potential(loaded: LoadedPotential) -> LoadedPotential:
    """The same potential as machine code: several times faster, most of all for molecules.

    The first time on a machine this takes about a minute; packages are kept in the folder of `cache_folder`. What is
    compiled is compared with the potential itself on structures of several sizes before it is used.

    Args:
        loaded: from `load_potential`, in any form.

    Raises:
        InputError: there is no C++ compiler, or the package computes something else.
    """
    if isinstance(loaded.module, CompiledEnergyForces):
        return loaded
    eager = eager_form(loaded)
    module = CompiledEnergyForces(eager, replace(loaded, module=eager))
    module.package(0)
    return replace(loaded, module=module)


def fast_form(loaded: LoadedPotential, compile: bool | None) -> LoadedPotential:
    """What a host runs: compiled if `compile` is True; if it is None, where that is possible and wanted.

    Where it is not possible, one line on stderr says why. GGNN_FF_COMPILE=0 is for machines where it is not wanted.

    Raises:
        InputError: `compile` is True, and it is not possible.
    """
    if compile is True:
        return compile_potential(loaded)
    if compile is False or os.environ.get("GGNN_FF_COMPILE") == "0":
        return loaded
    try:
        return compile_potential(loaded)
    except Exception as error:  # torch's compiler has many ways to fail
        tell(f"{loaded.source} runs without being compiled, several times slower: {error}")
    return loaded


def eager_form(loaded: LoadedPotential) -> EnergyForces:
    """The module as Python; that of a TorchScript file is built anew from its contract and weights."""
    if isinstance(loaded.module, EnergyForces):
        return loaded.module
    potential = without_weights(loaded.contract, loaded.dtype)
    scripted = loaded.module.potential.state_dict()  # type: ignore[union-attr]
    weights = {name: scripted[name] for name in potential.state_dict()}  # without the constants
    potential.load_state_dict(weights)
    return ready(EnergyForces(potential).to(loaded.device))


def _cached(eager: EnergyForces, loaded: LoadedPotential, threads: int) -> Any:
    """A verified package, from the cache or made now."""
    keep_freed_memory()
    path = cache_folder() / f"{_key(eager, loaded, threads)}.pt2"
    load_operators("host")
    with_kernels(eager.potential)  # a package calls operators by name
    if _has_tables(loaded):
        tables.register()
    if _has_ordered_sums(loaded, threads):
        sums.register()
    if path.exists():
        try:
            package = _load(path, loaded, threads)
            _verify(package, eager, loaded)
        except (RuntimeError, InputError) as error:
            warnings.warn(f"{path} cannot be used and is made anew: {error}", stacklevel=2)
        else:
            return package
    if why := why_not_compile():
        raise InputError(f"`compile` must find a C++ compiler: {why}")
    tell(f"compiling {loaded.source} for this machine, once; this takes about a minute")
    _make(eager, loaded, threads, path)
    package = _load(path, loaded, threads)
    _verify(package, eager, loaded)
    return package


def _load(path: Path, loaded: LoadedPotential, threads: int) -> Any:
    """One that works on a single thread can be used by each of torch's at once."""
    return load_package(path, loaded.device, torch.get_num_threads() if threads == 1 else 1)


def _key(eager: EnergyForces, loaded: LoadedPotential, threads: int) -> str:
    """Names what a package depends on: the potential, this package and torch, the machine, the threads."""
    contract = loaded.contract
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in eager.state_dict().items()}
    where = machine()
    if loaded.device.type == "cuda":
        where += [torch.cuda.get_device_name(loaded.device), str(torch.version.cuda)]
    facts = [
        contract.architecture,
        sorted(contract.hyperparameters.items()),
        contract.cutoff,
        contract.elements,
        loaded.dtype,
        str(loaded.device),
        version("ggnn-ff"),
        torch.__version__,
        REVISION,
        where,
        threads,
    ]
    return hashlib.sha256(repr(facts).encode() + save(weights)).hexdigest()[:32]


def _has_tables(loaded: LoadedPotential) -> bool:
    """Whether radial functions become splines: in float32, where these change no more than rounding does."""
    return loaded.dtype == "float32" and loaded.device.type == "cpu"


def _has_ordered_sums(loaded: LoadedPotential, threads: int) -> bool:
    """Whether sums over edges are left to an operator: a single thread adds in order anyway."""
    return threads > 1 and loaded.device.type == "cpu"


def traced(eager: EnergyForces, loaded: LoadedPotential, threads: int = 1) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """Energy and gradient as one graph of operations that serves any size, and the arguments it was traced with."""
    atoms = _copies(_with_edges(loaded.contract), loaded.contract.cutoff, 1 if threads == 1 else 64)
    arguments = tuple(tensor.to(loaded.device) for tensor in core_arguments(atoms, loaded.contract.cutoff))
    energies: nn.Module = AtomicEnergies(with_kernels(eager.potential))
    if _has_tables(loaded):
        positions, numbers, edge_index, _ = arguments
        vectors = positions[edge_index[1]] - positions[edge_index[0]]
        energies = tables.tabulated(energies, (numbers, edge_index, vectors), loaded.contract.cutoff)
    graph = make_fx(Core(energies), tracing_mode="symbolic", _allow_non_fake_inputs=True)(*arguments)
    _fold_constants(graph)
    if _has_ordered_sums(loaded, threads):
        sums.with_ordered_sums(graph)
    return graph, arguments


def _make(eager: EnergyForces, loaded: LoadedPotential, threads: int, path: Path) -> None:
    """Compiles the graph of operations and writes the package to `path`."""
    graph, arguments = traced(eager, loaded, threads)
    n_atoms = torch.export.Dim("n_atoms", min=2, max=2**24)
    n_edges = 2 * torch.export.Dim("n_pairs", min=FEWEST_EDGES // 2, max=2**28)  # both directions of each pair
    sizes = ({0: n_atoms}, {0: n_atoms}, {1: n_edges}, {0: n_edges})
    options: dict[str, Any] = {"cpp.threads": threads}
    if any(node.target is torch.ops.aten.repeat_interleave.Tensor for node in graph.graph.nodes):  # triplets
        options["realize_opcount_threshold"] = 8  # else what each edge sends is computed anew for each triplet
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own making
        program = torch.export.export(graph, arguments, dynamic_shapes=sizes)
        with tempfile.TemporaryDirectory() as folder:
            made = torch._inductor.aoti_compile_and_package(
                program, package_path=str(Path(folder) / "potential.pt2"), inductor_configs=options
            )
            write_atomically(path, partial(shutil.copyfile, made))


def _fold_constants(graph: fx.GraphModule) -> None:
    """Computes once what depends on nothing but weights and constants."""
    known: dict[fx.Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            if isinstance(value, Tensor):
                known[node] = value
        elif node.op == "call_function" and node.all_input_nodes and all(n in known for n in node.all_input_nodes):
            result = node.target(*fx.map_arg(node.args, known.get), **fx.map_arg(node.kwargs, known.get))
            if isinstance(result, Tensor):
                known[node] = result.contiguous()
            elif isinstance(result, tuple | list):  # of tensors, which are taken from it one by one
                known[node] = result
    for number, (node, value) in enumerate(known.items()):
        if node.op == "get_attr" or not isinstance(value, Tensor) or all(user in known for user in node.users):
            continue
        name = f"_folded_{number}"
        graph.register_buffer(name, value)
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
            constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def core_arguments(atoms: Atoms, cutoff: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `Core` is called with for one structure."""
    structure = from_atoms(atoms)
    edge_index, shifts = neighbor_list(structure, cutoff)
    return structure.positions, structure.numbers, edge_index.contiguous(), shifts @ structure.cell[0]


def _with_edges(contract: Contract) -> Atoms:
    """The example of the contract, or where it is too small for a package, as a diatomic molecule is, four atoms."""
    example = contract.example.atoms()
    if core_arguments(_copies(example, contract.cutoff, 1), contract.cutoff)[2].shape[1] >= FEWEST_EDGES:
        return example
    symbols = [contract.elements[k % len(contract.elements)] for k in range(4)]
    return Atoms(symbols, min(1.5, 0.5 * contract.cutoff) * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.1, 0, 1]]))


def _copies(atoms: Atoms, cutoff: float, number: int) -> Atoms:
    """A molecule next to copies of itself, too far away to be seen."""
    many = atoms.copy()
    apart = float(abs(atoms.positions).max()) * 2.0 + cutoff + float(abs(atoms.cell.array).sum())
    for k in range(1, number):
        other = atoms.copy()
        other.positions += [k * apart, 0.0, 0.0]
        many += other
    many.pbc = False
    return many


def _verify(package: Any, eager: EnergyForces, loaded: LoadedPotential) -> None:
    """Raises InputError unless the package agrees with the potential for one, less than one and two molecules."""
    module = CompiledEnergyForces(eager, loaded)
    module.packages = {False: package, True: package}
    example = _with_edges(loaded.contract)
    structures = [example, _copies(example, loaded.contract.cutoff, 2)]
    if len(example) > 3:
        structures.append(example[:-1])
    for atoms in structures:
        ours, reference = (evaluate(m, atoms, loaded.contract.cutoff, loaded.device) for m in (module, eager))
        energy_limit, forces_limit = TOLERANCE[loaded.dtype]
        energy_error = float((ours.energy - reference.energy).abs().max())
        forces_error = float((ours.forces - reference.forces).abs().max())
        stress_error = float((ours.stress - reference.stress).abs().max())
        if not (energy_error <= energy_limit and max(forces_error, stress_error) <= forces_limit):
            raise InputError(
                f"the compiled form of {loaded.source} does not give the numbers of the potential for {len(atoms)} "
                f"atoms (energy off by {energy_error:.2e} eV, forces by {forces_error:.2e} eV/angstrom); torch "
                f"{torch.__version__} compiles it wrongly. Use compile=False"
            )
