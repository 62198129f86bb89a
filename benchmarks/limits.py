"""Where the time of a compiled call goes, and how long its arithmetic and its memory traffic would take at full speed.

uv run benchmarks/limits.py     # writes benchmarks/limits.json and limits.md

For each architecture of speed.py, with the same hyper-parameters and random weights: energy and forces of ethanol,
aspirin and 64 waters, float32, one thread, a given neighbour list. The graph of operations that is compiled is run once
with every operation counted: multiplications and additions; and bytes of what must be read and written even if all
pointwise loops were fused into the operations beside them (factors and results of matrix products and of the C++
operators, each row of a spline table once). Divided by this core's measured rates, the larger of the
two is the limit. Shares of the time are those of the profiler, which slows calls down; the time itself is without it.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "peers"))

import numpy as np
import torch
import torch._inductor.config as inductor
from ase import Atoms
from ours import untrained
from speed import CANDIDATES
from torch import Tensor, fx
from torch.profiler import ProfilerActivity, profile

from ggnn_ff.comparison.speed import structures
from ggnn_ff.compiled import compile_potential, core_arguments, eager_form, traced
from ggnn_ff.export import LoadedPotential
from ggnn_ff.graph import from_atoms
from ggnn_ff.neighbors import neighbor_list

ROOT = Path(__file__).parents[1]
aten = torch.ops.aten
PARTS = {  # of the profile -> beginnings of the names of events
    "matrix products": ("aoti_torch_cpu_mm", "aoti_torch_cpu_addmm", "aoti_torch_cpu_bmm", "aten::mm", "aten::addmm"),
    "tensor products": ("ggnn_ff_convolution", "ggnn_ff_contraction"),
    "attention": ("ggnn_ff_attention",),
    "splines": ("ggnn_ff_spline",),
    "generated loops": ("graph_", "cpp_fused"),
}
THE_REST = "calls between them"


class Count(fx.Interpreter):
    """Runs a graph and counts.

    Attributes:
        operations: multiplications and additions of numbers.
        bytes: read and written by what cannot be fused.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.operations, self.bytes = 0, 0

    def run_node(self, n: fx.Node) -> Any:
        """As the interpreter's."""
        result = super().run_node(n)
        if n.op == "call_function":
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.count(str(n.target), args, result)
        return result

    def count(self, name: str, args: tuple, result: Any) -> None:
        """Adds what one operation does."""
        if name.startswith("ggnn_ff_spline"):
            *given, table, first, step = args
            x, n_terms = (given[0], 6) if "values" in name else (given[1], 5)
            intervals = torch.unique(((x - first) / step).floor())
            rows = torch.unique(intervals[:, None] + torch.arange(n_terms))
            self.operations += 2 * n_terms * x.shape[0] * table.shape[1]
            self.moved(*given[: 2 if n_terms == 5 else 1], result)
            self.bytes += len(rows) * table.shape[1] * table.element_size()
        elif name.startswith("ggnn_ff_convolution"):
            w, pairs, terms = args[-6], args[-4], args[-2]
            edges, channels = w.shape[0], w.shape[2]
            of_pairs, of_rows, of_terms = (6, 3, 4) if "gradient" in name else (2, 2, 2)
            rows = args[-3].shape[0]
            self.operations += edges * (
                channels * (of_pairs * pairs.shape[1] + of_rows * rows) + of_terms * terms.shape[1]
            )
            self.moved(*args[:-5], *(result if isinstance(result, tuple) else (result,)))
        elif name.startswith("ggnn_ff_contraction"):
            a, c = args[-4], args[-3]
            of_monomials = 10 if "gradient" in name else 4
            self.operations += of_monomials * a.shape[0] * c.shape[1] * c.shape[2] * c.shape[3]
            self.moved(*args[:-2], result)
        elif name.startswith("ggnn_ff_attention"):
            key_filter = args[-5]  # for each of its numbers, so many operations are in attention.cpp:
            self.operations += (51 if "gradient" in name else 20) * key_filter.numel()
            self.moved(*args[:-1], *result)
        elif name in ("aten.mm.default", "aten.addmm.default", "aten.bmm.default"):
            left, right = args[-2], args[-1]
            self.operations += 2 * left.numel() * right.shape[-1]
            self.moved(left, right, result)
        elif name.startswith("aten.") and isinstance(result, Tensor) and result.is_floating_point() and _computes(name):
            self.operations += max(one.numel() for one in (result, *args) if isinstance(one, Tensor))

    def moved(self, *tensors: Tensor) -> None:
        """Adds the sizes of tensors that are read or written."""
        for one in tensors:
            self.bytes += one.numel() * one.element_size()


def _computes(name: str) -> bool:
    """Whether numbers are made, rather than moved."""
    moves = (
        "view",
        "expand",
        "slice",
        "select",
        "index_select",
        "permute",
        "unsqueeze",
        "squeeze",
        "clone",
        "cat",
        "_to_copy",
    )
    return (
        not any(name.startswith(f"aten.{one}") for one in moves) and "empty" not in name and "index.Tensor" not in name
    )


def rates() -> tuple[float, float]:
    """Operations and bytes per second of one core now: a large matrix product, and a copy larger than its caches."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    big, other = torch.randn(2**24), torch.empty(2**24)
    return 2 * 1024**3 / seconds(lambda: a @ b, 0.5), 2 * big.numel() * 4 / seconds(lambda: other.copy_(big), 0.5)


def seconds(call: Callable[[], object], enough: float) -> float:
    """Median of repeated calls, of processor time."""
    call()
    times: list[float] = []
    while sum(times) < enough or len(times) < 5:
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return float(np.median(times))


def measure(
    potential: LoadedPotential, atoms: Atoms, graph: fx.GraphModule, peaks: tuple[float, float]
) -> dict[str, Any]:
    """Time of a call, its limit, and the shares of its parts."""
    cutoff = potential.contract.cutoff
    structure = from_atoms(atoms)
    edge_index, shifts = neighbor_list(structure, cutoff)
    tensors = (structure.positions, structure.numbers, structure.cell, edge_index, shifts, structure.batch)

    def call() -> None:
        potential.module(*tensors, 1)

    milliseconds = 1e3 * seconds(call, 1.0)
    counted = Count(graph)
    counted.run(*core_arguments(atoms, cutoff))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(20 if len(atoms) < 100 else 3):
            call()
    shares = dict.fromkeys([*PARTS, THE_REST], 0.0)
    for event in profiled.key_averages():
        part = next((part for part, names in PARTS.items() if event.key.startswith(names)), THE_REST)
        shares[part] += event.self_cpu_time_total
    total = sum(shares.values())
    return {
        "milliseconds": milliseconds,
        "edges": edge_index.shape[1],
        "megaflop": 1e-6 * counted.operations,
        "megabytes": 1e-6 * counted.bytes,
        "limit_milliseconds": 1e3 * max(counted.operations / peaks[0], counted.bytes / peaks[1]),
        "shares": {part: share / total for part, share in shares.items()},
    }


def measured(only: str, peaks: tuple[float, float]) -> list[dict[str, Any]]:
    """A row for each architecture whose name contains a word, and each structure."""
    rows = []
    for candidate in (one for one in CANDIDATES if one.script == "ours" and only.lower() in one.name.lower()):
        loaded = untrained(candidate.arguments[0], json.loads(candidate.arguments[1]))
        graph, _ = traced(eager_form(loaded), loaded)
        potential = compile_potential(loaded)
        for system, atoms in structures().items():
            row = {"model": candidate.name.removeprefix("ours: "), "system": system}
            rows.append(row | measure(potential, atoms, graph, peaks))
            print(json.dumps(rows[-1]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="architectures whose name contains this word")
    given = parser.parse_args()
    torch.set_num_threads(1)
    inductor.cpp.enable_kernel_profile = True
    inductor.profiler_mark_wrapper_call = True
    peaks = rates()
    with tempfile.TemporaryDirectory() as packages:  # those that can be profiled are not for the user's cache
        os.environ["GGNN_FF_CACHE"] = packages
        rows = measured(given.only, peaks)
    lines = [
        "| | | ms | Mflop | MB | limit (ms) | over it | "
        + " | ".join(f"{part} (%)" for part in [*PARTS, THE_REST])
        + " |",
        "|---|---|" + "---:|" * (5 + len(PARTS) + 1),
    ]
    for row in rows:
        shares = " | ".join(f"{100 * share:.0f}" for share in row["shares"].values())
        over = row["milliseconds"] / row["limit_milliseconds"]
        lines.append(
            f"| {row['model']} | {row['system']} | {row['milliseconds']:.2f} | {row['megaflop']:.1f} | "
            f"{row['megabytes']:.1f} | {row['limit_milliseconds']:.2f} | {over:.1f} | {shares} |"
        )
    about = (
        f"Processor time of a call, one thread; one core: {peaks[0] / 1e9:.0f} Gflop/s and {peaks[1] / 1e9:.1f} GB/s, "
        f"measured in the same run; {date.today()}, {platform.machine()}, torch {torch.__version__}. "
        "Made by `uv run benchmarks/limits.py`, which says what is counted."
    )
    text = about + "\n\n" + "\n".join(lines) + "\n"
    print(text)
    if not given.only:
        (ROOT / "benchmarks" / "limits.md").write_text(text, encoding="utf8")
        content = {"about": about, "flop_per_second": peaks[0], "bytes_per_second": peaks[1], "rows": rows}
        (ROOT / "benchmarks" / "limits.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
