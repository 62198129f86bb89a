"""C++ for what a compiler does not find by itself, built when first needed and put in the place of a model's own code.

Models stay as they are; `with_kernels` gives a copy for compilation, with the same parameters and the same numbers.
"""

import copy
import hashlib
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import cpp_extension

from ggnn_ff.cache import cache_folder, compiler, machine
from ggnn_ff.errors import InputError
from ggnn_ff.files import write_atomically
from ggnn_ff.models.mace import SymmetricContraction

SOURCE = Path(__file__).with_name("contraction.cpp")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]


class FusedContraction(nn.Module):
    """A `SymmetricContraction` with the weights folded into one coefficient for each element, monomial and channel."""

    def __init__(self, plain: SymmetricContraction) -> None:
        super().__init__()
        self.weight = plain.weight
        missing = 3 - plain.monomials.shape[0]
        table = nn.functional.pad(plain.monomials, (0, 0, 0, 0, 0, missing), value=plain.one)  # three factors always
        self.register_buffer("monomials", table.contiguous(), persistent=False)
        self.register_buffer("basis", plain.basis, persistent=False)

    def forward(self, features: Tensor, elements: Tensor) -> Tensor:
        """As `SymmetricContraction.forward`."""
        coefficients = torch.einsum("mpk,epf->emkf", self.basis.to(features.dtype), self.weight).contiguous()
        return torch.ops.ggnn_ff_contraction.values(features.contiguous(), coefficients, elements, self.monomials)


def with_kernels(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters of `model`, with C++ where there is any for the device.

    Raises:
        InputError: the compiler cannot build it.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, SymmetricContraction)]
    if not found or next(model.parameters()).device.type != "cpu":
        return model
    _load()
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, memo=shared)
    for name in found:
        twin.set_submodule(name, FusedContraction(twin.get_submodule(name)))  # type: ignore[arg-type]
    return twin


@cache
def _load() -> None:
    """Builds the library unless the cache has it, and tells torch how its operators are differentiated."""
    facts = [SOURCE.read_text(encoding="utf8"), FLAGS, torch.__version__, machine()]
    path = cache_folder() / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.so"
    if not path.exists():
        write_atomically(path, _build)
    torch.ops.load_library(path)
    operators = torch.ops.ggnn_ff_contraction
    fake, derive = torch.library.register_fake, torch.library.register_autograd
    fake("ggnn_ff_contraction::values", lambda a, c, z, table: a.new_empty(a.shape[0], c.shape[1], a.shape[2]))
    fake("ggnn_ff_contraction::gradient", lambda g, a, c, z, table: torch.empty_like(a))
    fake("ggnn_ff_contraction::coefficients", lambda g, a, c, z, table: torch.empty_like(c))
    fake(
        "ggnn_ff_contraction::second",
        lambda h, g, a, c, z, table: (torch.empty_like(g), torch.empty_like(a), torch.empty_like(c)),
    )

    def keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: object) -> None:
        ctx.save_for_backward(*inputs)

    def values_backward(context: torch.autograd.function.FunctionCtx, g: Tensor) -> tuple:
        a, c, z, table = context.saved_tensors  # type: ignore[attr-defined]
        g = g.contiguous()
        to_c = operators.coefficients(g, a, c, z, table) if context.needs_input_grad[1] else None  # type: ignore[attr-defined]
        return operators.gradient(g, a, c, z, table), to_c, None, None

    def gradient_backward(context: torch.autograd.function.FunctionCtx, h: Tensor) -> tuple:
        to_g, to_a, to_c = operators.second(h.contiguous(), *context.saved_tensors)  # type: ignore[attr-defined]
        return to_g, to_a, to_c, None, None

    derive("ggnn_ff_contraction::values", values_backward, setup_context=keep)
    derive("ggnn_ff_contraction::gradient", gradient_backward, setup_context=keep)


def _build(path: Path) -> None:
    folders = [f"-I{folder}" for folder in cpp_extension.include_paths()]
    libraries = [f"-L{folder}" for folder in cpp_extension.library_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = [compiler(), *FLAGS, abi, *folders, str(SOURCE), "-o", str(path), *libraries, "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"`compile` must build {SOURCE.name}, but {command[0]} failed: {done.stderr.strip()[-2000:]}")
