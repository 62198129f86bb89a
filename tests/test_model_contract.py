"""Every architecture has every physical property, and every check rejects a model that lacks its property."""

import broken_models as broken
import model_checks
import pytest
import torch
from model_checks import CHECKS, CUTOFF, ethanol, predict
from pydantic import BaseModel

from ggnn_ff.forces import EnergyForces
from ggnn_ff.layers import SOFTENING
from ggnn_ff.models import MODELS
from ggnn_ff.potential import Potential, set_dtype

ELEMENTS = ["H", "C", "O", "Ti"]
LARGE = (pytest.mark.slow, pytest.mark.timeout(1800))
PRESETS = [
    pytest.param((name, preset), marks=() if preset == "small" else LARGE, id=f"{name}-{preset}")
    for name, architecture in MODELS.items()
    for preset in architecture.presets
]


def untrained(name: str, preset: str | BaseModel) -> EnergyForces:
    """A random potential in float64 with a scale and a shift for each element, and forces of some eV/angstrom."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = MODELS[name].presets[preset] if isinstance(preset, str) else preset
        potential = Potential(name, settings, CUTOFF, ELEMENTS, torch.float64)
    numbers = torch.arange(len(potential.scale), dtype=torch.float64)
    potential.scale.copy_(4.0 + 0.1 * numbers)
    potential.shift.copy_(-10.0 * numbers)
    module = EnergyForces(potential).eval()
    potential.scale.mul_(3.0 / predict(module, ethanol()).forces.abs().max())
    return module


@pytest.fixture(scope="module", params=PRESETS)
def module(request) -> EnergyForces:
    return untrained(*request.param)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_architecture(module, check):
    check(module)


@pytest.mark.parametrize("chosen", PRESETS)
def test_architecture_float32_is_close(chosen):
    in_float32 = untrained(*chosen)
    set_dtype(in_float32.potential, torch.float32)
    model_checks.check_float32_is_close(untrained(*chosen), in_float32)


@pytest.mark.parametrize("name", MODELS)
def test_architecture_has_presets(name):
    assert list(MODELS[name].presets) == ["small", "default", "large"]
    default, softening = MODELS[name].hyperparameters(), {"softening": SOFTENING}
    if "softening" in type(default).model_fields:  # without it, what older potentials have
        default = default.model_copy(update=softening)
    assert MODELS[name].presets["default"] == default


@pytest.mark.parametrize("name", ["equivariant_transformer", "gotennet", "painn"])
def test_lengths_without_softening_are_refused(name):
    cusp = MODELS[name].presets["small"].model_copy(update={"softening": 1e-4})
    with pytest.raises(AssertionError, match="differs by"):
        CHECKS["smooth_where_surroundings_are_symmetric"](untrained(name, cusp))


def toy(potential: type[broken.Toy] = broken.Toy, forces: type[EnergyForces] = EnergyForces) -> EnergyForces:
    return forces(potential(CUTOFF)).eval()


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_sound_toy_passes(check):
    check(toy())


REJECTED = [
    ("forces_are_the_gradient", toy(forces=broken.ScaledForces)),
    ("forces_are_the_gradient", toy(forces=broken.WrongSign)),
    ("forces_are_the_gradient", toy(forces=broken.CurlForces)),
    ("stress_is_the_strain_derivative", toy(forces=broken.WrongStressSign)),
    ("parameter_gradient_of_a_force_loss", toy(forces=broken.DetachedForces)),
    ("parameter_gradient_of_a_force_loss", toy(broken.ConstantSlope)),
    ("second_derivatives", toy(broken.ConstantSlope)),
    ("translation", toy(forces=broken.AbsolutePositions)),
    ("rotation", toy(broken.XComponent)),
    ("reflection", toy(broken.TripleProduct)),
    ("permutation", toy(broken.AtomIndex)),
    ("no_net_force_or_torque", toy(forces=broken.CurlForces)),
    ("no_net_force_or_torque", toy(forces=broken.AbsolutePositions)),
    ("lattice_translation_of_single_atoms", toy(forces=broken.NoShifts)),
    ("choice_of_cell", toy(forces=broken.SignedVolume)),
    ("supercell", toy(forces=broken.NoShifts)),
    ("partial_periodicity", toy(forces=broken.NoShifts)),
    ("one_atom", toy(broken.MeanOverNeighbours)),
    ("no_edges", toy(broken.MeanOverNeighbours)),
    ("batch_equals_one_by_one", toy(broken.MeanOverAtoms)),
    ("structures_of_a_batch_do_not_see_each_other", toy(broken.MeanOverAtoms)),
    ("far_fragments_add", toy(broken.MeanOverAtoms)),
    ("smooth_at_the_cutoff", toy(broken.SharpCutoff)),
    ("smooth_at_the_cutoff", toy(broken.LinearCutoff)),
    ("smooth_at_the_cutoff", toy(broken.CosineCutoff)),
    ("smooth_where_atoms_line_up", toy(broken.SafeArccos)),
    ("smooth_where_atoms_line_up", toy(broken.AbsoluteVolume)),
    ("smooth_where_neighbours_swap_order", toy(broken.NearestNeighbour)),
    ("smooth_where_surroundings_are_symmetric", toy(broken.LengthOfTheSum)),
    ("no_jumps", toy(broken.SharpCutoff)),
    ("no_jumps", toy(broken.LinearCutoff)),
    ("no_jumps", toy(broken.NearestNeighbour)),
    ("collinear_and_planar_molecules", toy(broken.Arccos)),
    ("close_and_coincident_atoms", toy(broken.Overflow)),
    ("determinism", toy(broken.Noise)),
    ("torchscript_equals_eager", toy(broken.OtherWhenScripted)),
]


@pytest.mark.parametrize(("check", "defective"), REJECTED)
def test_check_rejects(check, defective):
    with pytest.raises(AssertionError):
        CHECKS[check](defective)


def test_every_check_rejects_something():
    assert {check for check, _ in REJECTED} == set(CHECKS)


def test_coincidence_check_rejects_silence(monkeypatch):
    monkeypatch.setattr("ggnn_ff.neighbors.SHORTEST_DISTANCE", 0.0)
    with pytest.raises(AssertionError, match="nobody says so"):
        CHECKS["close_and_coincident_atoms"](toy())


def test_float32_check_rejects_lost_digits():
    model_checks.check_float32_is_close(toy(), toy(broken.Float32))
    with pytest.raises(AssertionError):
        model_checks.check_float32_is_close(toy(), toy(broken.BFloat16))


def test_mirror_image_is_found_by_reflection_alone():
    CHECKS["rotation"](toy(broken.TripleProduct))
