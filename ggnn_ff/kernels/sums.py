"""Sums over edges without atomic additions, which compilers use for several threads: faster, and in a fixed order."""

from typing import Any

import torch
from torch import fx

from ggnn_ff.kernels.build import load_operators, once

aten = torch.ops.aten


def with_ordered_sums(graph: fx.GraphModule) -> None:
    """Replaces each addition of rows by number in a graph of operations, in place; the graph has no derivative then."""
    register()
    for node in list(graph.graph.nodes):
        arguments = _rows_added(node)
        if arguments is None or not arguments[2].meta["val"].is_floating_point():  # counts have one order only
            continue
        with graph.graph.inserting_before(node):
            index, source = (graph.graph.call_function(aten.contiguous.default, (one,)) for one in arguments[1:3])
            ordered = graph.graph.call_function(
                torch.ops.ggnn_ff_sums.add.default, (arguments[0], index, source, arguments[3])
            )
        ordered.meta = dict(node.meta)
        node.replace_all_uses_with(ordered)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _rows_added(node: fx.Node) -> tuple[Any, Any, Any, float] | None:
    """Rows to add to, their numbers, what is added, and its factor."""
    arguments: Any = node.args
    if node.target is aten.index_add.default and arguments[1] == 0:
        rows, _, index, source = arguments
        return rows, index, source, float(node.kwargs.get("alpha", 1.0))  # type: ignore[arg-type]
    if node.target is aten.index_put.default and len(arguments) == 4 and arguments[3] is True:
        rows, indices, source, _ = arguments
        if len(indices) == 1 and _has_a_row_each(indices[0], source):
            return rows, indices[0], source, 1.0
    return None


def _has_a_row_each(index: Any, source: Any) -> bool:
    number, values = index.meta["val"], source.meta["val"]
    return number.ndim == 1 and values.ndim > 0 and str(values.shape[0]) == str(number.shape[0])


@once
def register() -> None:
    """Builds the operator, and tells torch its shape."""
    load_operators("sums")
    torch.library.register_fake("ggnn_ff_sums::add", lambda rows, index, source, alpha: torch.empty_like(rows))
