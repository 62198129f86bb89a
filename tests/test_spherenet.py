"""The torsions of SphereNet against brute force, their jumps, and the architectures that it contains."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from model_checks import CHECKS, CUTOFF, ethanol, inputs, predict, stack
from scipy.special import lpmv
from torch import Tensor, nn

from ggnn_ff.forces import EnergyForces
from ggnn_ff.graph import Graph, edge_vectors
from ggnn_ff.models import MODELS
from ggnn_ff.models.spherenet import PublishedTorsion, SmoothTorsion
from ggnn_ff.potential import Potential

ELEMENTS = ["H", "C", "O"]
SMALL = MODELS["spherenet"].presets["small"]


def untrained(name: str, **settings) -> EnergyForces:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hyperparameters = MODELS[name].presets["small"].model_copy(update=settings)
        return EnergyForces(Potential(name, hyperparameters, CUTOFF, ELEMENTS, torch.float64)).eval()


def graph(atoms: Atoms) -> Graph:
    positions, numbers, cell, edge_index, shifts, batch, n_structures = inputs(stack(atoms))
    vectors = edge_vectors(positions, cell, edge_index, shifts, batch)
    return Graph(numbers, edge_index, vectors, batch, n_structures)


# The functions of the torsion

N_SPHERICAL = 4
JI = torch.tensor([0] * 5 + [1] * 3 + [3] * 2 + [4])  # of five edges, one of which hears nobody
THETA, PHI, WEIGHTS = torch.rand((3, len(JI)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
THETA, PHI = math.pi * THETA, 2.0 * math.pi * PHI


def functions(torsion: nn.Module, turned: float = 0.0) -> np.ndarray:
    """With azimuths counted from a direction that is `turned` by another angle for each edge."""
    x, y = torch.sin(THETA) * torch.cos(PHI + turned * JI), torch.sin(THETA) * torch.sin(PHI + turned * JI)
    return torch.jit.script(torsion)(torch.cos(THETA), x, y, WEIGHTS, JI, 5).numpy()


def polar(degree: int, order: int) -> np.ndarray:
    factor = (2 * degree + 1) / (4.0 * math.pi) * math.factorial(degree - order) / math.factorial(degree + order)
    factor = math.sqrt(factor if order == 0 else 2.0 * factor) * (-1) ** order  # scipy has the Condon-Shortley phase
    return factor * lpmv(order, degree, np.cos(THETA.numpy()))


def others(k: int) -> list[int]:
    return [q for q in range(len(JI)) if JI[q] == JI[k] and q != k]


def test_smooth_torsion_is_the_weighted_mean_over_all_references():
    phi, w, sines = PHI.numpy(), WEIGHTS.numpy(), np.sin(THETA.numpy())
    expected = []
    for m in range(N_SPHERICAL):
        mean = [
            sum(w[q] * sines[q] ** m * np.cos(m * (phi[k] - phi[q])) for q in others(k)) / (1.0 + w[others(k)].sum())
            for k in range(len(JI))
        ]
        expected += [polar(degree, m) * (mean if m else 1.0) for degree in range(m, N_SPHERICAL)]
    for turned in (0.0, 1.3):
        actual = functions(SmoothTorsion(N_SPHERICAL), turned)
        np.testing.assert_allclose(actual, np.stack(expected, axis=1), atol=1e-13)


def test_published_torsion_is_that_to_the_next_neighbour():
    phi = PHI.numpy()
    torsions = np.array(
        [min([(phi[q] - phi[k]) % (2.0 * np.pi) for q in others(k)] + [2.0 * np.pi]) for k in range(11)]
    )
    cosines = [polar(d, m) * np.cos(m * torsions) for m in range(N_SPHERICAL) for d in range(m, N_SPHERICAL)]
    sines = [polar(d, m) * np.sin(m * torsions) for m in range(1, N_SPHERICAL) for d in range(m, N_SPHERICAL)]
    for turned in (0.0, 1.3):
        actual = functions(PublishedTorsion(N_SPHERICAL), turned)
        np.testing.assert_allclose(actual, np.stack(cosines + sines, axis=1), atol=1e-10)


# Jumps


def swap(x: float) -> Atoms:
    """Seen along the bond from atom 0 to atom 1, atom 2 passes atom 3 at x = 0."""
    azimuths, radii = np.array([0.7 + x, 0.7, 2.4, 4.4]), np.array([1.2, 1.6, 1.1, 1.0])
    around = np.stack([-0.3 * np.arange(1, 5), radii * np.cos(azimuths), radii * np.sin(azimuths)], axis=1)
    return Atoms("CCHOHH", positions=[[0, 0, 0], [1.4, 0, 0], *around])


def crossing(x: float) -> Atoms:
    """Atom 5 leaves the sight of atom 0 at x = 0."""
    atoms = swap(0.5)
    atoms.positions[5] = (CUTOFF + x) * np.array([-0.6, 0.0, -0.8])
    return atoms


def jumps(module: EnergyForces, path) -> tuple[float, float]:
    """Of energy and of the largest force component at x = 0, each extrapolated linearly from both sides."""

    def at_zero(sign: float) -> tuple[float, np.ndarray]:
        near, far = predict(module, path(sign * 1e-5)), predict(module, path(sign * 2e-5))
        return float(2.0 * near.energy[0] - far.energy[0]), (2.0 * near.forces - far.forces).numpy()

    (energy_before, forces_before), (energy_after, forces_after) = at_zero(-1.0), at_zero(1.0)
    return abs(energy_after - energy_before), float(np.abs(forces_after - forces_before).max())


@pytest.mark.parametrize("path", [swap, crossing])
def test_published_torsion_jumps_and_smooth_torsion_does_not(path):
    energy, forces = jumps(untrained("spherenet", torsion="published"), path)
    assert energy > 1e-4
    assert forces > 1e-3
    energy, forces = jumps(untrained("spherenet"), path)
    assert energy < 1e-8
    assert forces < 1e-7


def test_published_torsion_sees_the_mirror_image_as_another_molecule():
    module = untrained("spherenet", torsion="published")
    for check in ("rotation", "translation"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("model_checks.oxide", ethanol)  # in the crystal atoms lie on the axis, where phi is anything
            CHECKS[check](module)
    with pytest.raises(AssertionError):
        CHECKS["reflection"](module)


# What it contains


class Ones(nn.Module):
    def forward(self, basis: Tensor) -> Tensor:
        return basis.new_ones(())


def test_dimenet_is_the_case_without_torsion():
    sphere, dime = untrained("spherenet"), untrained("dimenet", **SMALL.model_dump(exclude={"torsion"}))
    missing, unexpected = dime.load_state_dict(sphere.state_dict(), strict=False)
    assert missing == []
    assert unexpected
    assert all("torsion_filters" in name for name in unexpected)
    assert (predict(sphere, ethanol()).forces - predict(dime, ethanol()).forces).abs().max() > 1e-3
    sphere.potential.representation.torsion_filters = nn.ModuleList(Ones() for _ in range(SMALL.n_layers))
    for one, other in zip(predict(sphere, ethanol()), predict(dime, ethanol()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_schnet_is_the_case_without_interactions():
    """An output block is a continuous-filter convolution and layers on each atom (SchNet, section 4)."""
    representation = untrained("spherenet").potential.representation
    message_passing = representation.message_passing
    n_features = SMALL.n_features
    with torch.no_grad():
        message_passing.embedding.message[0].weight[:, :n_features] = 0.0  # x_i
        message_passing.embedding.message[0].weight[:, 2 * n_features :] = 0.0  # d_ji
    given = graph(ethanol())
    centre, neighbour = given.edge_index
    lengths = given.edge_vectors.norm(dim=1)
    filters = message_passing.first_output.radial_filter(
        CUTOFF * representation.basis(lengths) * representation.envelope(lengths).unsqueeze(1)
    )
    elements = message_passing.embedding.elements(given.numbers)
    x = message_passing.embedding.message(torch.cat([elements, elements, elements], dim=1))  # of them it sees one
    convolved = torch.zeros_like(x).index_add(0, centre, x[neighbour] * filters)
    expected = message_passing.first_output.layers(convolved)
    actual = representation(given)[:, : SMALL.n_output_features]
    assert expected.std(dim=0).max() > 1e-2
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
