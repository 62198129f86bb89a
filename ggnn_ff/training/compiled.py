"""The loss and its gradient with respect to all weights, traced and compiled as one graph."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ggnn_ff.errors import InputError, tell
from ggnn_ff.forces import Prediction
from ggnn_ff.kernels import with_kernels
from ggnn_ff.kernels.sums import with_ordered_sums
from ggnn_ff.training.batches import Batch
from ggnn_ff.training.vector import OneVector


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient is known already: backward hands it on."""

    @staticmethod
    def forward(context: Any, loss: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
        context.gradient = gradient
        return loss.clone()

    @staticmethod
    def backward(context: Any, *outputs: Tensor) -> Any:
        return None, None, context.gradient * outputs[0]


class CompiledLoss:
    """Calls `loss(model(batch), batch)` through one compiled graph; an optimizer sees no difference.

    The forces in the loss are themselves a gradient, which `torch.compile` does not differentiate; here the second
    gradient is taken while tracing, so that what is compiled is a plain function of tensors.

    On a CPU the structures of a batch are shared out among torch's threads, as far as they can be in equal parts: a
    small structure keeps one thread busy, not two. The loss has to be a mean over structures and atoms. Torch then has
    the threads of one part for all else: those that wait for more to do would take the processors from the others.
    """

    def __init__(self, model: OneVector, loss: Callable[[Prediction, Batch], Tensor]) -> None:
        self.model, self.loss = model, loss
        self.shape: tuple[int, ...] | None = None
        self.with_angles = True  # whether the graph holds for one number of angles only
        self.compiled: Callable[..., Any] | None = None
        self.n_structures, self.n_parts = 0, 1
        self.pool: ThreadPoolExecutor | None = None  # of a thread for each part, where there are several

    def __call__(self, batch: Batch) -> Tensor:
        """The loss, a scalar with gradient.

        Raises:
            InputError: a batch of another shape than the first; the graph holds for one shape.
        """
        first = self.compiled is None
        if first:
            self.n_structures = batch.n_structures
            if batch.positions.device.type == "cpu":
                self.n_parts = _number_of_parts(batch.n_structures, torch.get_num_threads())
        shared = self.n_parts > 1 and batch.n_structures == self.n_structures
        parts = shared_out(batch, self.n_parts) if shared else [batch]
        if first:
            self._prepare(parts[0])
        for part in parts:
            self._check(part)
        if self.pool is None:
            loss, gradient = self._evaluate(batch)
        else:
            losses, gradients = zip(*self.pool.map(self._evaluate, parts), strict=True)
            loss, gradient = torch.stack(losses).mean(), torch.stack(gradients).mean(dim=0)
        return _WithGradient.apply(loss, gradient, self.model.weights)

    def _prepare(self, part: Batch) -> None:
        """Compiles for the threads of each part; here, since in another thread Ctrl-C would not end it."""
        threads = torch.get_num_threads() // self.n_parts
        torch.set_num_threads(threads)
        self.compiled, self.with_angles = self._compile(part)
        self.shape = _shape(part, self.with_angles)
        self._evaluate(part)
        if self.n_parts > 1:
            self.pool = ThreadPoolExecutor(self.n_parts, "loss", torch.set_num_threads, (threads,))

    def _evaluate(self, part: Batch) -> tuple[Tensor, Tensor]:
        """Loss and gradient."""
        assert self.compiled is not None
        with torch._C._AutoDispatchBelowAutograd():  # else our operators look for a derivative, in Python
            loss, gradient = self.compiled(self.model.weights.detach(), *_tensors(part))
        return loss, gradient

    def _check(self, part: Batch) -> None:
        shape = _shape(part, self.with_angles)
        if shape != self.shape:
            raise InputError(
                "`run.compile` needs batches of one shape, that is structures with equally many atoms and, for "
                "architectures with angles, equally many of these (as where a cutoff is larger than a molecule), got "
                f"{shape} after {self.shape} (atoms, edges, structures, and pairs of edges, for each thread); set "
                "`run.compile: false`"
            )

    def _compile(self, batch: Batch) -> tuple[Callable[..., Any], bool]:
        """The graph, and whether numbers were read from tensors to make it: how many angles there are."""
        n_structures, model = batch.n_structures, with_kernels(self.model.model, training=True)

        def loss_and_gradient(weights: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            positions, numbers, cell, edge_index, shifts, index, energy, forces = tensors
            given = Batch(positions, numbers, cell, edge_index, shifts, index, n_structures, energy, forces)
            parts = {name: part.detach().requires_grad_(True) for name, part in self.model.parts(weights).items()}
            loss = self.loss(functional_call(model, parts, given.inputs), given)
            gradients = torch.autograd.grad(loss, list(parts.values()))
            # Copies, since the compiler may lay out a gradient otherwise than where this is traced.
            copies = [one.clone(memory_format=torch.contiguous_format).flatten() for one in gradients]
            return loss.detach(), torch.cat(copies)

        weights = self.model.weights.detach()
        graph = make_fx(loss_and_gradient, _error_on_data_dependent_ops=False)(weights, *_tensors(batch))
        reading = torch.ops.aten._local_scalar_dense.default  # what it gives is a constant of the graph
        with_angles = any(node.target is reading for node in graph.graph.nodes)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        if weights.device.type == "cpu":  # where torch adds in order, it adds one number after the other
            with_ordered_sums(graph)
        # A call of C++ alone leaves Python to the other threads.
        options: dict[str, Any] = {"cpp_wrapper": weights.device.type == "cpu"}
        return torch.compile(graph, dynamic=False, fullgraph=True, options=options), with_angles


def _number_of_parts(n_structures: int, threads: int) -> int:
    """In which the threads take the structures; says so where some of the threads have no part of their own."""
    n_parts = largest_divisor(n_structures, threads)
    if n_parts < min(n_structures, threads):
        tell(
            f"{threads} threads take the {n_structures} frames of a batch in {n_parts} equal part(s); with a batch "
            f"size that {threads} divides, each has its own, which is faster"
        )
    return n_parts


def largest_divisor(number: int, limit: int) -> int:
    """Of `number`, up to `limit`."""
    return max(divisor for divisor in range(1, limit + 1) if number % divisor == 0)


def shared_out(batch: Batch, n_parts: int) -> list[Batch]:
    """Batches of equally many of the structures, in their order."""
    size = batch.n_structures // n_parts
    firsts = torch.arange(0, batch.n_structures + 1, size)
    atoms = torch.searchsorted(batch.batch, firsts)  # batch is sorted
    edges = torch.searchsorted(batch.edge_index[0].contiguous(), atoms)  # so are centres
    parts = []
    for k, (atom, edge) in enumerate(zip(atoms[:-1].tolist(), edges[:-1].tolist(), strict=True)):
        of_atoms, of_edges = slice(atom, int(atoms[k + 1])), slice(edge, int(edges[k + 1]))
        structures = slice(k * size, (k + 1) * size)
        parts.append(
            Batch(
                positions=batch.positions[of_atoms],
                numbers=batch.numbers[of_atoms],
                cell=batch.cell[structures],
                edge_index=batch.edge_index[:, of_edges] - atom,
                shifts=batch.shifts[of_edges],
                batch=batch.batch[of_atoms] - k * size,
                n_structures=size,
                energy=batch.energy[structures],
                forces=batch.forces[of_atoms],
            )
        )
    return parts


def _shape(batch: Batch, with_angles: bool) -> tuple[int, ...]:
    """Numbers of atoms, edges, structures, and pairs of edges with one centre, of which the triplets are a part."""
    shape = batch.positions.shape[0], batch.edge_index.shape[1], batch.n_structures
    return (*shape, int(torch.bincount(batch.edge_index[0]).square().sum())) if with_angles else shape


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    return tuple(item for item in batch if isinstance(item, Tensor))
