"""C++ in place of a model's own code: the same values and derivatives, of every order that training needs."""

import pytest
import torch
from ase.build import molecule
from model_checks import ethanol
from torch.fx.experimental.proxy_tensor import make_fx

from ggnn_ff.cache import why_not_compile
from ggnn_ff.compiled import AtomicEnergies
from ggnn_ff.graph import from_atoms
from ggnn_ff.irreps import TensorProductConvolution
from ggnn_ff.kernels import build as build_module
from ggnn_ff.kernels import sums, with_kernels
from ggnn_ff.kernels.attention import FusedAttention
from ggnn_ff.kernels.contraction import FusedContraction
from ggnn_ff.kernels.convolution import FusedConvolution
from ggnn_ff.kernels.tables import tabulated
from ggnn_ff.models import MODELS
from ggnn_ff.models.equivariant_transformer import AttentionSum, Filters
from ggnn_ff.models.mace import MACE, MACEHyperparameters, SymmetricContraction
from ggnn_ff.neighbors import neighbor_list
from ggnn_ff.potential import Potential

pytestmark = pytest.mark.skipif(why_not_compile() is not None, reason=f"{why_not_compile()}")
L_MAX, N_ATOMS, N_ELEMENTS = 2, 5, 3


def contractions(l_out, correlation, n_features, dtype=torch.float64):
    generator = torch.Generator().manual_seed(l_out)
    plain = SymmetricContraction(n_features, N_ELEMENTS, L_MAX, l_out, correlation).to(dtype)
    fused = with_kernels(torch.nn.Sequential(plain))[0]
    assert isinstance(fused, FusedContraction)
    features = torch.randn(N_ATOMS, (L_MAX + 1) ** 2, n_features, generator=generator, dtype=dtype)
    return plain, fused, features, torch.arange(N_ATOMS) % N_ELEMENTS


@pytest.mark.parametrize("l_out", [0, 1])
@pytest.mark.parametrize("correlation", [1, 2, 3])
@pytest.mark.parametrize("n_features", [3, 16, 20])  # less than a block, one, and one with a rest
def test_contraction_and_its_first_two_derivatives_are_those_of_the_model(l_out, correlation, n_features):
    plain, fused, features, elements = contractions(l_out, correlation, n_features)
    answers = []
    for module in (plain, fused):
        x = features.clone().requires_grad_(True)
        y = module(x, elements)
        (g,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        loss = g.square().sum() + y.square().sum()
        answers.append([y, g, *torch.autograd.grad(loss, [x, module.weight])])
    for ours, reference in zip(answers[1], answers[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_copy_shares_the_parameters_and_leaves_the_model_alone():
    model = MACE(MACEHyperparameters(n_features=4, n_layers=2, l_max=L_MAX), 5.0, ["H", "C"])
    twin = with_kernels(model)
    assert not any(isinstance(module, FusedContraction) for module in model.modules())
    assert sum(isinstance(module, FusedContraction) for module in twin.modules()) == 3
    theirs = dict(twin.named_parameters())
    assert theirs.keys() == dict(model.named_parameters()).keys()
    assert all(theirs[name] is parameter for name, parameter in model.named_parameters())


def test_model_without_a_kernel_is_handed_back():
    model = torch.nn.Linear(2, 2)
    assert with_kernels(model) is model


@pytest.mark.parametrize(("l_in", "l_edge", "l_out"), [(0, 2, 2), (1, 3, 3), (2, 2, 1), (2, 3, 0)])
@pytest.mark.parametrize("n_features", [3, 16, 20])
def test_convolution_and_its_first_two_derivatives_are_those_of_the_model(l_in, l_edge, l_out, n_features):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    plain = TensorProductConvolution(l_in, l_edge, l_out)
    fused = with_kernels(torch.nn.Sequential(plain, torch.nn.Linear(1, 1)))[0]  # which has a device
    assert isinstance(fused, FusedConvolution)
    edge_index = (torch.ones(N_ATOMS, N_ATOMS) - torch.eye(N_ATOMS)).nonzero()
    edge_index = edge_index[edge_index[:, 0] != 2].T.contiguous()  # an atom without neighbours
    n_edges = edge_index.shape[1]
    inputs = [random(N_ATOMS, 2 * degree + 1, n_features) for degree in range(l_in + 1)]
    inputs += [random(n_edges, (l_edge + 1) ** 2), random(n_edges, plain.n_paths * n_features)]
    answers = []
    for module in (plain, fused):
        leaves = [tensor.clone().requires_grad_(True) for tensor in inputs]
        *features, harmonics, weights = leaves
        outputs = module(features, harmonics, weights, edge_index)
        gradients = torch.autograd.grad(sum(y.sin().sum() for y in outputs), leaves, create_graph=True)
        loss = sum(tensor.square().sum() for tensor in (*outputs, *gradients))
        answers.append([*outputs, *gradients, *torch.autograd.grad(loss, leaves)])
    for ours, reference in zip(answers[1], answers[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


def test_convolution_of_degrees_that_there_is_no_kernel_for_stays_as_it_is():
    model = torch.nn.Sequential(TensorProductConvolution(4, 4, 4), torch.nn.Linear(1, 1))
    assert with_kernels(model) is model


def attention(n_atoms, n_features, n_heads, dtype=torch.float64):
    """Plain and fused, and arguments with an atom that has no neighbours."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    plain = AttentionSum(n_heads)
    fused = with_kernels(torch.nn.Sequential(plain, torch.nn.Linear(1, 1)))[0]
    assert isinstance(fused, FusedAttention)
    edge_index = torch.randint(1, n_atoms, (2, 6 * n_atoms), generator=generator)
    edge_index = edge_index[:, edge_index[0].argsort()]
    n_edges = edge_index.shape[1]
    of_atoms = [random(n_atoms, n_features), random(n_atoms, n_features), random(n_atoms, 3 * n_features)]
    of_edges = [random(n_edges, n_features), random(n_edges, 3 * n_features), random(n_edges, 3)]
    return plain, fused, [*of_atoms, random(n_atoms, 3, n_features), *of_edges], edge_index


def heard(module, inputs, edge_index):
    """What atoms hear, and the gradient of a function of it with respect to all inputs."""
    leaves = [tensor.clone().requires_grad_(True) for tensor in inputs]
    outputs = module(*leaves[:4], Filters(*leaves[4:]), edge_index)
    return [*outputs, *torch.autograd.grad(sum(y.sin().sum() for y in outputs), leaves)]


@pytest.mark.parametrize(("n_features", "n_heads"), [(32, 4), (32, 2), (21, 3), (40, 1)])
def test_attention_and_its_derivatives_are_those_of_the_model(n_features, n_heads):
    plain, fused, inputs, edge_index = attention(N_ATOMS, n_features, n_heads)
    for ours, reference in zip(heard(fused, inputs, edge_index), heard(plain, inputs, edge_index), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_attention_is_fused_for_inference_only():
    plain = torch.nn.Sequential(AttentionSum(4), torch.nn.Linear(1, 1))
    assert with_kernels(plain, training=True) is plain


def test_unsorted_edges_are_refused():
    fused = with_kernels(torch.nn.Sequential(TensorProductConvolution(0, 0, 0), torch.nn.Linear(1, 1)))[0]
    ones = torch.ones(2, 1, 4)
    with pytest.raises(RuntimeError, match="sorted by centre"):
        fused([ones], torch.ones(2, 1), torch.ones(2, 4), torch.tensor([[1, 0], [0, 1]]))


def test_foreign_elements_and_atoms_are_refused():
    """In C++ they would be read from memory of others."""
    _, fused, features, elements = contractions(0, 2, 16)
    with pytest.raises(RuntimeError, match="does not know"):
        fused(features, elements + N_ELEMENTS)
    fused = with_kernels(torch.nn.Sequential(TensorProductConvolution(0, 0, 0), torch.nn.Linear(1, 1)))[0]
    with pytest.raises(RuntimeError, match="an atom that is not there"):
        fused([torch.ones(2, 1, 4)], torch.ones(2, 1), torch.ones(2, 4), torch.tensor([[0, 1], [1, 2]]))


def convolution_gradient():
    """Of a sum over 500 edges of 80 atoms, in float32."""
    generator = torch.Generator().manual_seed(0)
    fused = with_kernels(torch.nn.Sequential(TensorProductConvolution(1, 2, 1), torch.nn.Linear(1, 1)))[0]
    edge_index = torch.randint(80, (2, 500), generator=generator)
    edge_index = edge_index[:, edge_index[0].argsort()]
    x = torch.randn(80, 4, 40, generator=generator).requires_grad_(True)
    y = torch.randn(500, 9, generator=generator)
    w = torch.randn(500, fused.n_paths * 40, generator=generator)
    outputs = fused(list(x.split([1, 3], dim=1)), y, w, edge_index)
    return torch.autograd.grad(sum(out.sin().sum() for out in outputs), x)


def attention_gradient():
    """With 480 edges of 80 atoms, in float32."""
    _, fused, inputs, edge_index = attention(80, 40, 5, torch.float32)
    return heard(fused, inputs, edge_index)


@pytest.mark.parametrize("gradient", [convolution_gradient, attention_gradient])
def test_threads_change_no_more_than_the_last_digits_and_those_always_in_one_way(gradient):
    def with_threads(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return gradient()
        finally:
            torch.set_num_threads(before)

    one, two, again = with_threads(1), with_threads(2), with_threads(2)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(first, second) for first, second in zip(two, again, strict=True))


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"egnn"}))
def test_splines_give_the_forces_of_the_radial_functions_to_a_millionth(name):
    """In float64, where rounding hides nothing; at distances from a bond to the cutoff."""
    torch.manual_seed(0)
    potential = Potential(name, MODELS[name].presets["small"], 5.0, ["H", "C", "O"], torch.float64)
    for parameter in potential.parameters():
        parameter.requires_grad_(False)
    plain = AtomicEnergies(with_kernels(potential))

    def arguments(atoms):
        structure = from_atoms(atoms)
        edge_index, _ = neighbor_list(structure, 5.0)
        return structure.numbers, edge_index, structure.positions[edge_index[1]] - structure.positions[edge_index[0]]

    table = tabulated(plain, arguments(molecule("CH3CH2OH")), 5.0)
    assert any("_spline_" in name_of_buffer for name_of_buffer, _ in table.named_buffers())
    for atoms in (ethanol(), molecule("C6H6"), molecule("H2O")):
        answers = []
        for module in (plain, table):
            numbers, edge_index, vectors = arguments(atoms)
            energies = module(numbers, edge_index, vectors.requires_grad_(True))
            answers += [energies, torch.autograd.grad(energies.sum(), vectors)[0]]
        energies, gradient, energies_of_table, gradient_of_table = (answer.detach() for answer in answers)
        assert float((gradient - gradient_of_table).abs().max() / gradient.abs().max()) < 1e-6
        assert float((energies - energies_of_table).abs().max() / energies.abs().max()) < 1e-6
        assert not torch.equal(gradient, gradient_of_table)
    numbers, edge_index = torch.tensor([6, 8]), torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]])  # as where there are few
    beyond = torch.tensor([[10.0, 0, 0], [0, 10.0, 0], [-10.0, 0, 0], [0, -10.0, 0]], dtype=torch.float64)
    torch.testing.assert_close(table(numbers, edge_index, beyond), plain(numbers, edge_index, beyond))


def test_potential_that_needs_no_splines_is_handed_back():
    potential = Potential("egnn", MODELS["egnn"].presets["small"], 5.0, ["H"], torch.float64)
    plain = AtomicEnergies(potential)
    numbers, edge_index = torch.tensor([1, 1]), torch.tensor([[0, 1], [1, 0]])
    vectors = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float64)
    assert tabulated(plain, (numbers, edge_index, vectors), 5.0) is plain


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("shape", [(), (3,), (40,), (3, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_those_of_torch_and_the_same_each_time(ordered, shape, dtype):
    sums.register()
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 50, (5000,), generator=generator)
    index = index.sort().values if ordered else index
    rows, source = torch.randn(60, *shape, dtype=dtype), torch.randn(5000, *shape, dtype=dtype)
    expected = rows.double().index_add(0, index, source.double(), alpha=-0.5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        found = [torch.ops.ggnn_ff_sums.add(rows, index, source, -0.5) for _ in range(5)]
        torch.set_num_threads(1)
        found.append(torch.ops.ggnn_ff_sums.add(rows, index, source, -0.5))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found[0].double(), expected, rtol=0, atol=1e-4 if dtype is torch.float32 else 1e-12)
    assert all(torch.equal(one, found[0]) for one in found)
    for wrong in (-1, 60):
        index[-1 if wrong > 0 else 0] = wrong
        with pytest.raises(RuntimeError, match="out of range"):
            torch.ops.ggnn_ff_sums.add(rows, index, source, 1.0)
        index[-1 if wrong > 0 else 0] = 0 if wrong < 0 else 59


def test_sums_in_a_graph_are_replaced():
    def summed(x, index):
        gathered = x[index].square()
        total = torch.zeros_like(x).index_add(0, index, gathered)
        (gradient,) = torch.autograd.grad(total.sin().sum(), x)
        return gradient

    x, index = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([2, 0, 0, 3, 1, 2])
    expected = summed(x, index)
    graph = make_fx(summed, tracing_mode="symbolic")(x, index)
    sums.with_ordered_sums(graph)
    targets = [node.target for node in graph.graph.nodes]
    assert targets.count(torch.ops.ggnn_ff_sums.add.default) == 2
    assert not {torch.ops.aten.index_add.default, torch.ops.aten.index_put.default} & set(targets)
    torch.testing.assert_close(graph(x, index), expected, rtol=0, atol=1e-14)


def test_counts_in_a_graph_stay_as_they_are():
    def counted(index):
        return torch.zeros_like(index[:4]).index_add(0, index, torch.ones_like(index))

    index = torch.tensor([2, 0, 0, 3, 1, 2])
    graph = make_fx(counted, tracing_mode="symbolic")(index)
    sums.with_ordered_sums(graph)
    assert graph(index).tolist() == [2, 1, 2, 1]


def test_damaged_library_is_made_anew(tmp_path, monkeypatch):
    built = []

    def build(source, path):
        built.append(path)
        path.write_text("no library")

    monkeypatch.setenv("GGNN_FF_CACHE", str(tmp_path))
    monkeypatch.setattr(build_module, "_build", build)
    with pytest.raises(OSError, match="Could not load this library"):
        build_module.load_operators.__wrapped__("sums")
    with pytest.warns(UserWarning, match="is made anew"), pytest.raises(OSError, match="Could not load"):
        build_module.load_operators.__wrapped__("sums")
    assert len(built) == 2
