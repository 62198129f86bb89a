"""GemNet-T against its equations, written out over single edges and pairs of edges in NumPy."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from ase import Atoms
from model_checks import CUTOFF, ethanol, oxide, stack
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import eval_legendre, expit, spherical_jn

from ggnn_ff.graph import Graph, edge_vectors
from ggnn_ff.models.gemnet import PRESETS, GemNet, GemNetHyperparameters, linear
from ggnn_ff.neighbors import neighbor_list

Array = NDArray[np.float64]
ELEMENTS = ["H", "C", "O", "Ti"]
HYPERPARAMETERS = GemNetHyperparameters(
    n_features=8, n_triplet_features=6, n_basis_features=5, n_layers=2, n_radial=4, n_spherical=4
)
STRUCTURES = {
    "ethanol": ethanol(),
    "oxide": oxide(),  # atoms see their own images
    "two atoms": Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.2]]),  # edges without another edge
    "one atom": Atoms("C"),
}


def build(hyperparameters: GemNetHyperparameters) -> GemNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GemNet(hyperparameters, CUTOFF, ELEMENTS)


def graph(atoms: Atoms) -> Graph:
    structure = stack(atoms)
    edge_index, shifts = neighbor_list(structure, CUTOFF)
    vectors = edge_vectors(structure.positions, structure.cell, edge_index, shifts, structure.batch)
    return Graph(structure.numbers, edge_index, vectors, structure.batch, 1)


def act(x: Array) -> Array:
    return x * expit(x) / 0.6


class Reference:
    """The paper's figure 4 for one structure; an edge c -> a is a tuple (a, c, vector from a to c)."""

    def __init__(self, model: GemNet, h: GemNetHyperparameters, atoms: Atoms) -> None:
        self.weights = {name: w.detach().double().numpy() for name, w in model.state_dict().items()}
        self.h = h
        self.elements = [ELEMENTS.index(symbol) for symbol in atoms.symbols]
        g = graph(atoms)
        self.edges = [(int(a), int(c), r.numpy()) for a, c, r in zip(*g.edge_index, g.edge_vectors, strict=True)]
        self.reverse = self.reverse_edges()

    def dense(self, name: str, x: Array) -> Array:
        return act(self.weights[f"{name}.0.weight"] @ x)

    def residual(self, name: str, x: Array) -> Array:
        return (x + self.dense(f"{name}.layers.1", self.dense(f"{name}.layers.0", x))) / np.sqrt(2)

    def envelope(self, r: float) -> float:
        x, p = r / CUTOFF, self.h.envelope_exponent
        return 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)

    def e_rbf(self, r: float) -> Array:
        frequencies = np.float32(np.arange(1, self.h.n_radial + 1) * np.pi / CUTOFF)  # as `BesselBasis` rounds them
        return self.envelope(r) * np.sqrt(2 / CUTOFF) * np.sin(frequencies.astype(np.float64) * r) / r

    def radial_part_of_e_cbf(self, r: float) -> Array:
        """(L, B), times the factor that the class explains: 5 sqrt(4 pi)."""
        basis = np.empty((self.h.n_spherical, self.h.n_radial))
        for degree in range(self.h.n_spherical):
            zeros = zeros_of_bessel(degree, self.h.n_radial)
            norm = np.sqrt(2 / (CUTOFF**3 * spherical_jn(degree + 1, zeros) ** 2))
            basis[degree] = norm * spherical_jn(degree, zeros * r / CUTOFF)
        return 5 * np.sqrt(4 * np.pi) * self.envelope(r) * basis

    def angular_part_of_e_cbf(self, cosine: float) -> Array:
        """(L,), Y_l0 of the polar angle."""
        degrees = np.arange(self.h.n_spherical)
        return np.sqrt((2 * degrees + 1) / (4 * np.pi)) * eval_legendre(degrees, cosine)

    def atom_update(self, name: str, messages: list[Array], shared: str) -> list[Array]:
        sums = [np.zeros(self.h.n_features) for _ in self.elements]
        for (a, _, r), m in zip(self.edges, messages, strict=True):
            radial = self.weights[f"{shared}.weight"] @ self.e_rbf(float(np.linalg.norm(r)))
            sums[a] += m * (self.weights[f"{name}.radial_filter.weight"] @ radial)
        after = [self.dense(f"{name}.layers.0", x) for x in sums]
        return [self.residual(f"{name}.layers.2", self.residual(f"{name}.layers.1", x)) for x in after]

    def triplets(self, name: str, messages: list[Array]) -> list[Array]:
        """Of each edge c -> a, before the exchange with a -> c: sum over b, in the order of the bilinear form."""
        shape = (self.h.n_triplet_features, self.h.n_basis_features, self.h.n_triplet_features)
        bilinear = self.weights[f"{name}.bilinear.mix.weight"].reshape(shape)  # out, basis, in
        x = []
        for (_, _, r), m in zip(self.edges, messages, strict=True):
            radial = self.weights["radial_triplet.weight"] @ self.e_rbf(float(np.linalg.norm(r)))
            filtered = self.dense(f"{name}.ba", m) * (self.weights[f"{name}.radial_filter.weight"] @ radial)
            x.append(self.dense(f"{name}.down", filtered))
        sums = [np.zeros(self.h.n_triplet_features) for _ in self.edges]
        for ca, (a, _, r_ac) in enumerate(self.edges):
            d_ca = float(np.linalg.norm(r_ac))
            radial = np.einsum("iln,ln->il", self.weights["circular"], self.radial_part_of_e_cbf(d_ca))
            for ba, (other_a, _, r_ab) in enumerate(self.edges):
                if a != other_a or ca == ba:
                    continue
                circular = radial @ self.angular_part_of_e_cbf(r_ac @ r_ab / d_ca / np.linalg.norm(r_ab))
                sums[ca] += (bilinear @ x[ba]) @ circular
        return sums

    def interaction(self, name: str, atoms: list[Array], messages: list[Array]) -> tuple[list[Array], list[Array]]:
        sums = self.triplets(f"{name}.triplets", messages)
        new = []
        for ca, (m, reverse) in enumerate(zip(messages, self.reverse, strict=True)):
            up = self.dense(f"{name}.triplets.up_ca", sums[ca]) + self.dense(f"{name}.triplets.up_ac", sums[reverse])
            heard = (self.dense(f"{name}.ca", m) + up / np.sqrt(2)) / np.sqrt(2)
            new.append(
                self.residual(f"{name}.after_skip", (m + self.residual(f"{name}.before_skip", heard)) / np.sqrt(2))
            )
        update = self.atom_update(f"{name}.atom_update", new, "radial_atom")
        atoms = [(h + u) / np.sqrt(2) for h, u in zip(atoms, update, strict=True)]
        embedded = self.embed(f"{name}.edge_embedding", atoms, new)
        embedded = [self.residual(f"{name}.after_embedding", m) for m in embedded]
        return atoms, [(m + e) / np.sqrt(2) for m, e in zip(new, embedded, strict=True)]

    def reverse_edges(self) -> list[int]:
        def is_reverse(edge: tuple[int, int, Array], other: tuple[int, int, Array]) -> bool:
            return edge[0] == other[1] and edge[1] == other[0] and bool(np.abs(edge[2] + other[2]).max() < 1e-8)

        found = [[i for i, other in enumerate(self.edges) if is_reverse(edge, other)] for edge in self.edges]
        assert all(len(candidates) == 1 for candidates in found)
        return [candidates[0] for candidates in found]

    def embed(self, name: str, atoms: list[Array], edges: list[Array]) -> list[Array]:
        return [
            self.dense(f"{name}.layer", np.concatenate([atoms[c], atoms[a], edge]))
            for (a, c, _), edge in zip(self.edges, edges, strict=True)
        ]

    def features(self) -> Array:
        atoms = [self.weights["embedding.weight"][element] for element in self.elements]
        messages = self.embed("edge_embedding", atoms, [self.e_rbf(float(np.linalg.norm(r))) for _, _, r in self.edges])
        features = [self.atom_update("first_output", messages, "radial_output")]
        for layer in range(self.h.n_layers):
            atoms, messages = self.interaction(f"interactions.{layer}", atoms, messages)
            features.append(self.atom_update(f"outputs.{layer}", messages, "radial_output"))
        return np.concatenate([np.array(block) for block in features], axis=1)


@lru_cache
def zeros_of_bessel(degree: int, count: int) -> Array:
    grid = np.linspace(0.5, 40.0, 4000)
    crossings = np.flatnonzero(np.diff(np.sign(spherical_jn(degree, grid))))[:count]
    return np.array([brentq(lambda x: spherical_jn(degree, x), grid[i], grid[i + 1], xtol=1e-14) for i in crossings])


@pytest.mark.parametrize("atoms", STRUCTURES.values(), ids=STRUCTURES)
def test_features_are_those_of_the_equations(atoms):
    model = build(HYPERPARAMETERS).double()
    features = model(graph(atoms)).detach().numpy()
    expected = Reference(model, HYPERPARAMETERS, atoms).features()
    assert features.shape == (len(atoms), model.n_features)
    assert (np.abs(expected).max() > 0.1) == (len(atoms) > 1)
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-12)


def test_angles_matter():
    """Two triangles of edges with the same lengths at the first atom, and another angle."""
    model = build(HYPERPARAMETERS).double()

    def first(angle: float) -> Array:
        position = [1.1 * np.cos(angle), 1.1 * np.sin(angle), 0.0]
        g = graph(Atoms("OHH", positions=[[0, 0, 0], [1.0, 0, 0], position]))
        near = (g.edge_index == 0).any(dim=0)  # no edge between the hydrogens
        return model(g._replace(edge_index=g.edge_index[:, near], edge_vectors=g.edge_vectors[near])).detach().numpy()

    features, others = first(1.0), first(1.5)
    n = HYPERPARAMETERS.n_features
    np.testing.assert_allclose(features[:, :n], others[:, :n], atol=1e-12)  # the first block knows lengths only
    assert np.abs(features[:, n:] - others[:, n:]).max() > 1e-3


@pytest.mark.parametrize(("n_in", "n_out"), [(6, 16), (128, 64), (64, 64), (16, 128)])
def test_first_weights(n_in, n_out):
    weights = linear(n_in, n_out).weight.detach().double()
    torch.testing.assert_close(weights.mean(dim=1), torch.zeros(n_out, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.square().sum(dim=1), torch.ones(n_out, dtype=torch.float64), atol=1e-5, rtol=0)


def box_of_water() -> Atoms:
    """27 molecules at the density of water, each turned another way."""
    side = 3.1
    box = Atoms(cell=[3 * side] * 3, pbc=True)
    for site in np.ndindex(3, 3, 3):
        water = Atoms("OHH", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        water.euler_rotate(*(360 * np.random.default_rng(site).random(3)))
        box += Atoms(water.numbers, water.positions + side * np.array(site))
    return box


@pytest.mark.parametrize("atoms", [ethanol(), box_of_water()], ids=["molecule", "liquid"])
@pytest.mark.parametrize("preset", ["small", "default"])
def test_features_start_at_order_one(atoms, preset):
    """In all blocks, from few neighbours to many: what the factors fitted by the authors are for."""
    model = build(PRESETS[preset])
    with torch.no_grad():
        blocks = model(graph(atoms)).split(PRESETS[preset].n_features, dim=1)
    for block in blocks:
        assert 0.2 < float(block.square().mean().sqrt()) < 2.0
