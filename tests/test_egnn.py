"""EGNN displaces atoms through edge vectors: the same as with positions, as the paper writes it."""

import torch
from model_checks import CUTOFF, assert_close, ethanol, inputs, stack

from ggnn_ff.graph import Graph, edge_vectors
from ggnn_ff.models.egnn import EGNN, Convolution, EGNNHyperparameters


def test_features_are_those_of_the_equations():
    torch.manual_seed(0)
    model = EGNN(EGNNHyperparameters(n_features=8, n_layers=3), CUTOFF, ["H", "C", "O"]).double()
    for displacement in model.displacements:
        displacement.phi_x[2].weight.data.normal_()
    positions, numbers, cell, edge_index, shifts, batch, n_structures = inputs(stack(ethanol()))
    vectors = edge_vectors(positions, cell, edge_index, shifts, batch)
    features = model(Graph(numbers, edge_index, vectors, batch, n_structures))

    n_atoms = len(numbers)
    u = torch.zeros(n_atoms, n_atoms, dtype=torch.float64)
    u[edge_index[0], edge_index[1]] = model.envelope(torch.linalg.vector_norm(vectors, dim=1))
    assert float((u == 0).sum()) == n_atoms, "the cutoff leaves out a pair, so that the sums below are not the paper's"

    def messages(convolution: Convolution, i: int, j: int) -> torch.Tensor:
        first = convolution.phi_e_atoms
        own, other = first.weight.split(8)
        d = (x[i] - x[j]).square().sum().reshape(1)
        return convolution.phi_e(own @ h[i] + other @ h[j] + sum(first.bias.split(8)) + convolution.phi_e_distance(d))

    x, h = positions, model.embedding(numbers)
    for layer, convolution in enumerate([model.first, *model.convolutions]):
        m = [[messages(convolution, i, j) for j in range(n_atoms)] for i in range(n_atoms)]  # equation 3
        heard = [sum(u[i, j] * convolution.phi_inf(m[i][j]) * m[i][j] for j in range(n_atoms)) for i in range(n_atoms)]
        h = torch.stack([h[i] + convolution.phi_h(torch.cat([h[i], heard[i]])) for i in range(n_atoms)])  # equation 6
        if layer < len(model.displacements):
            phi_x = model.displacements[layer].phi_x
            pushes = [[u[i, j] * (x[i] - x[j]) * phi_x(m[i][j]) for j in range(n_atoms)] for i in range(n_atoms)]
            x = torch.stack([x[i] + sum(pushes[i]) / (1 + u[i].sum()) for i in range(n_atoms)])  # equation 4
    assert float((x - positions).norm(dim=1).min().detach()) > 0.01
    assert_close(features.detach(), h.detach(), 1e-12)
