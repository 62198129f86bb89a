"""C++ for what a compiler does not find by itself, built when first needed and put in the place of a model's own code.

Models stay as they are; `with_kernels` gives a copy for compilation, with the same parameters and the same numbers.
"""

import copy

from torch import nn

from ggnn_ff.irreps import TensorProductConvolution
from ggnn_ff.kernels.attention import FusedAttention
from ggnn_ff.kernels.contraction import FusedContraction
from ggnn_ff.kernels.convolution import FusedConvolution
from ggnn_ff.models.equivariant_transformer import AttentionSum
from ggnn_ff.models.mace import SymmetricContraction

REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    SymmetricContraction: FusedContraction,
    TensorProductConvolution: FusedConvolution,
}
FOR_INFERENCE: dict[type[nn.Module], type[nn.Module]] = {AttentionSum: FusedAttention}  # no second derivative


def with_kernels(model: nn.Module, *, training: bool = False) -> nn.Module:
    """A copy that shares the tensors of `model`, with C++ where there is any for the device, and for `training`.

    That also tells torch the operators which a compiled form of `model` calls by name.

    Raises:
        InputError: the compiler cannot build it.
    """
    replacements = REPLACEMENTS if training else REPLACEMENTS | FOR_INFERENCE
    found = [name for name, module in model.named_modules() if type(module) in replacements and _is_known(module)]
    tensors = [*model.parameters(), *model.buffers()]
    if not found or tensors[0].device.type != "cpu":
        return model
    shared = {id(tensor): tensor for tensor in tensors}
    twin = copy.deepcopy(model, memo=shared)
    for name in found:
        plain = twin.get_submodule(name)
        twin.set_submodule(name, replacements[type(plain)](plain))
    return twin


def _is_known(module: nn.Module) -> bool:
    """Whether the C++ has the size of `module`: tensor products of features are written for degrees 0 to 3."""
    return not isinstance(module, TensorProductConvolution) or len(module.couplings) <= 4
