"""C++ for what a compiler does not find by itself, built when first needed and put in the place of a model's own code.

Models stay as they are; `with_kernels` gives a copy for compilation, with the same parameters and the same numbers.
"""

import copy

from torch import nn

from ggnn_ff.irreps import TensorProductConvolution
from ggnn_ff.kernels.contraction import FusedContraction
from ggnn_ff.kernels.convolution import FusedConvolution
from ggnn_ff.models.mace import SymmetricContraction

REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    SymmetricContraction: FusedContraction,
    TensorProductConvolution: FusedConvolution,
}


def with_kernels(model: nn.Module) -> nn.Module:
    """A copy that shares the tensors of `model`, with C++ where there is any for the device.

    That also tells torch the operators which a compiled form of `model` calls by name.

    Raises:
        InputError: the compiler cannot build it.
    """
    found = [name for name, module in model.named_modules() if type(module) in REPLACEMENTS]
    tensors = [*model.parameters(), *model.buffers()]
    if not found or tensors[0].device.type != "cpu":
        return model
    shared = {id(tensor): tensor for tensor in tensors}
    twin = copy.deepcopy(model, memo=shared)
    for name in found:
        plain = twin.get_submodule(name)
        twin.set_submodule(name, REPLACEMENTS[type(plain)](plain))
    return twin
