"""What depends on the distance of two atoms alone, such as radial networks, as splines of the distance.

Found in the graph of operations of any architecture: the nodes that follow from the edge lengths and constants.
"""

from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ggnn_ff.kernels.build import load_operators, once
from ggnn_ff.neighbors import SHORTEST_DISTANCE

LARGEST_ERROR = 1e-8  # of radial functions, over the largest value; slopes, and so forces, are then good to 1e-6
USUAL_DISTANCE = 0.5  # angstrom; that is asked from here on
KNOTS = (129, 257, 513, 1025)  # the first that is good enough
DEGREE = 5
aten = torch.ops.aten


def tabulated(atomic_energies: nn.Module, example: tuple[Tensor, Tensor, Tensor], cutoff: float) -> nn.Module:
    """The same function with radial parts read from splines with four continuous derivatives; for inference only.

    It is handed back as it is where it has no radial part, or one that splines of a sensible size do not fit.

    Args:
        atomic_energies: called with numbers (N,), edge_index (2, E) and edge_vectors (E, 3) -> (N,).
        example: arguments with which the graph is traced; it serves all sizes.
        cutoff: angstrom; splines reach from `SHORTEST_DISTANCE` to it.
    """
    graph = make_fx(atomic_energies, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
    lengths = next((node for node in graph.graph.nodes if _is_edge_length(node)), None)
    if lengths is None:
        return atomic_energies
    radial, size = _that_follow_from(lengths, graph)
    ends = [node for node in radial if _is_worth_it(node, radial) and any(user not in radial for user in node.users)]
    if not ends:
        return atomic_energies
    register()
    fitted = _tables(graph, lengths, size, radial, ends, cutoff)
    if fitted is None:
        return atomic_energies
    first, step, tables, shapes = fitted
    for number, (end, (table, slopes), shape) in enumerate(zip(ends, tables, shapes, strict=True)):
        graph.register_buffer(f"_spline_{number}", table)
        graph.register_buffer(f"_slopes_{number}", slopes)
        with graph.graph.inserting_after(lengths):
            spline = graph.graph.get_attr(f"_spline_{number}")
        with graph.graph.inserting_after(spline):
            its_slopes = graph.graph.get_attr(f"_slopes_{number}")
        with graph.graph.inserting_after(its_slopes):
            arguments = (lengths, spline, its_slopes, first, step)
            values = graph.graph.call_function(torch.ops.ggnn_ff_spline.values.default, arguments)
        with graph.graph.inserting_after(values):
            shaped = graph.graph.call_function(aten.reshape.default, (values, [-1, *shape]))
        end.replace_all_uses_with(shaped, delete_user_cb=lambda user: user not in radial)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph


def _is_edge_length(node: fx.Node) -> bool:
    """A norm of the edge vectors, one number for each."""
    if node.op != "call_function" or node.target is not aten.linalg_vector_norm.default:
        return False
    source = node.args[0]
    while isinstance(source, fx.Node) and source.target in (aten._to_copy.default, aten.clone.default):
        source = source.args[0]
    vectors = [n for n in node.graph.nodes if n.op == "placeholder"][2]
    return source is vectors and node.meta["val"].ndim == 1


def _that_follow_from(lengths: fx.Node, graph: fx.GraphModule) -> tuple[set[fx.Node], Any]:
    """Nodes with a row for each edge that depend on nothing but the edge lengths and constants."""
    size = str(lengths.meta["val"].shape[0])  # its symbol; a comparison of sizes would be a condition on the graph
    constant = {node for node in graph.graph.nodes if node.op == "get_attr"}
    sizes = {
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and node.target is aten.sym_size.int and str(node.meta["val"]) == size
    }
    radial: set[fx.Node] = {lengths}
    for node in graph.graph.nodes:
        if node.op != "call_function" or node in sizes or node is lengths:
            continue
        inputs = set(node.all_input_nodes)
        if inputs <= constant and inputs:
            constant.add(node)
        elif inputs & radial and inputs <= radial | constant | sizes:
            value = node.meta["val"]
            if isinstance(value, Tensor) and value.ndim > 0 and str(value.shape[0]) == size and _is_by_row(node):
                radial.add(node)
    return radial, size


def _is_by_row(node: fx.Node) -> bool:
    """Whether each row of the result depends on the same row of the input, for what models do with radial functions."""
    pointwise = torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]
    by_row = (
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.mm.default,
        aten.addmm.default,
        aten.unsqueeze.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.slice.Tensor,
        aten.cat.default,
        aten.split_with_sizes.default,
        aten._to_copy.default,
        aten.clone.default,
        aten.expand.default,
        aten.select.int,
        aten.sum.dim_IntList,
    )
    return pointwise or node.target in by_row


def _is_worth_it(node: fx.Node, radial: set[fx.Node]) -> bool:
    """Whether a matrix product or a transcendental function is on the way from the lengths to it."""
    costly = (aten.mm.default, aten.addmm.default, aten.sin.default, aten.exp.default)
    seen, todo = set(), [node]
    while todo:
        one = todo.pop()
        if one in seen or one not in radial:
            continue
        if one.target in costly:
            return True
        seen.add(one)
        todo += one.all_input_nodes
    return False


def _tables(
    graph: fx.GraphModule, lengths: fx.Node, size: Any, radial: set[fx.Node], ends: list[fx.Node], cutoff: float
) -> tuple[float, float, list[tuple[Tensor, Tensor]], list[list[int]]] | None:
    """First knot, their distance; for each end the coefficients of B-splines and of their slopes, and its shape.

    None where the splines would need too many knots.
    """

    def evaluate(x: Tensor) -> list[Tensor]:
        values: dict[fx.Node, Any] = {lengths: x}
        for node in graph.graph.nodes:
            if node in values:
                continue
            if node.op == "get_attr":
                values[node] = _double(getattr(graph, node.target))
            elif node.op == "call_function" and node.target is aten.sym_size.int and str(node.meta["val"]) == size:
                values[node] = len(x)
            elif node.op == "call_function" and all(n in values for n in node.all_input_nodes):
                args = fx.map_arg(node.args, values.__getitem__)
                kwargs = fx.map_arg(node.kwargs, values.__getitem__)
                kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
                values[node] = node.target(*args, **kwargs)
        return [values[end].detach() for end in ends]

    for n_knots in KNOTS:
        x = torch.linspace(SHORTEST_DISTANCE, cutoff, n_knots, dtype=torch.float64)
        step = float(x[1] - x[0])
        points = torch.cat([x, x[:2] + step / 2, x[-2:] - step / 2]).sort()[0]  # as many points as B-splines
        parts = [part.reshape(len(points), -1).numpy() for part in evaluate(points)]
        beyond = step * np.arange(1, DEGREE + 1)
        knots = np.concatenate([float(x[0]) - beyond[::-1], x.numpy(), float(x[-1]) + beyond])
        splines = [make_interp_spline(points.numpy(), part, k=DEGREE, t=knots) for part in parts]
        between = (x[:-1].unsqueeze(1) + step * torch.tensor([0.25, 0.5, 0.75])).flatten()
        between = between[between > USUAL_DISTANCE]
        exact = evaluate(between)
        pairs = [(spline, part.reshape(len(between), -1).numpy()) for spline, part in zip(splines, exact, strict=True)]
        if all(np.abs(spline(between.numpy()) - e).max() <= LARGEST_ERROR * np.abs(e).max() for spline, e in pairs):
            break
    else:
        return None
    dtype = lengths.meta["val"].dtype
    tables = [
        (torch.from_numpy(spline.c).to(dtype), torch.from_numpy(np.diff(spline.c, axis=0) / step).to(dtype))
        for spline in splines
    ]
    return SHORTEST_DISTANCE, step, tables, [list(part.shape[1:]) for part in exact]


def _double(value: Any) -> Any:
    return value.to(torch.float64) if isinstance(value, Tensor) and value.is_floating_point() else value


@once
def register() -> None:
    """Tells torch the derivative with respect to the lengths; there is no second one."""
    load_operators("spline")
    operators = torch.ops.ggnn_ff_spline
    fake = torch.library.register_fake
    fake("ggnn_ff_spline::values", lambda x, c, slopes, first, step: x.new_empty(x.shape[0], c.shape[1]))
    fake("ggnn_ff_spline::gradient", lambda g, x, slopes, first, step: torch.empty_like(x))

    def keep(ctx: Any, inputs: tuple, output: object) -> None:
        ctx.save_for_backward(inputs[0], inputs[2])
        ctx.grid = inputs[3:]

    def backward(ctx: Any, g: Tensor) -> tuple:
        return operators.gradient(g.contiguous(), *ctx.saved_tensors, *ctx.grid), None, None, None, None

    torch.library.register_autograd("ggnn_ff_spline::values", backward, setup_context=keep)
