"""All weights of a model as one vector, so that optimizer, clipping and averaging have one tensor to go over."""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call


class OneVector(nn.Module):
    """A model whose only parameter is `weights`: all of its own, one after the other, of one floating-point type.

    Adam, clipping by the norm and exponential averages do the same to one vector as to its parts, in less time where
    the parts are small.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parameters = dict(model.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.weights = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters.values()]))
        self.model = _without_parameters(model)

    def forward(self, *inputs: object) -> object:
        """What the model gives with these weights."""
        return functional_call(self.model, self.parts(self.weights), inputs)

    def parts(self, weights: Tensor) -> dict[str, Tensor]:
        """The parameters of the model, by name, from a vector of the length of `weights`."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        pieces = weights.split(sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


def _without_parameters(model: nn.Module) -> nn.Module:
    """A copy whose parameters are None: they are given anew in every call."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, None)
    return twin
