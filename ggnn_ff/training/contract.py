"""The contract of a potential that has been trained: what it is, and what was measured on it."""

from importlib.metadata import version

import numpy as np
import torch
from ase import Atoms
from torch import nn

from ggnn_ff.contract import (
    FORMAT_VERSION,
    Contract,
    Domain,
    Example,
    ExampleCertificate,
    StartedFrom,
    TestErrors,
    TrainingData,
)
from ggnn_ff.export import DTYPES, evaluate
from ggnn_ff.forces import EnergyForces
from ggnn_ff.potential import Potential, set_dtype


def make_contract(
    potential: Potential,
    architecture: str,
    hyperparameters: dict[str, int | float | str | bool],
    example: Atoms,
    *,
    elements: list[str],
    level_of_theory: str,
    training_data: TrainingData,
    test_errors: TestErrors | None,
    domain: Domain | None = None,
    started_from: StartedFrom | None = None,
) -> Contract:
    """States what a trained potential is, and measures its certificate on `example`."""
    dtype = str(next(potential.readout.parameters()).dtype).removeprefix("torch.")
    module = EnergyForces(potential).eval()
    answer = evaluate(module, example, potential.cutoff, torch.device("cpu"))
    set_dtype(potential, torch.float64)
    certificate = measure_certificate(module, example, potential.cutoff)
    set_dtype(potential, DTYPES[dtype])
    return Contract(
        format_version=FORMAT_VERSION,
        package_version=version("ggnn-ff"),
        architecture=architecture,
        hyperparameters=hyperparameters,
        elements=elements,
        cutoff=potential.cutoff,
        dtype=dtype,
        length_unit="angstrom",
        energy_unit="eV",
        level_of_theory=level_of_theory,
        training_data=training_data,
        test_errors=test_errors,
        example=Example(
            numbers=example.numbers.tolist(),
            positions=example.positions.tolist(),
            cell=example.cell.array.tolist(),
            pbc=example.pbc.tolist(),
            energy=float(answer.energy[0]),
            forces=answer.forces.tolist(),
        ),
        certificate=certificate,
        domain=domain,
        started_from=started_from,
    )


def measure_certificate(module: nn.Module, atoms: Atoms, cutoff: float) -> ExampleCertificate:
    """Measures that forces are the gradient, and symmetry, of a float64 module on one structure."""

    def energy_and_forces(positions: np.ndarray, order: np.ndarray) -> tuple[float, np.ndarray]:
        moved = atoms[order]
        moved.positions = positions[order]
        prediction = evaluate(module, moved, cutoff, torch.device("cpu"))
        forces = np.empty_like(positions)
        forces[order] = prediction.forces.numpy()
        return float(prediction.energy[0]), forces

    random = np.random.default_rng(0)
    identity, permutation = np.arange(len(atoms)), random.permutation(len(atoms))
    x = atoms.positions
    energy, forces = energy_and_forces(x, identity)
    scale = max(float(np.abs(forces).max()), 1e-6)
    step, errors = 1e-4, []
    for _ in range(10):  # random directions: each involves every force component
        direction = random.normal(size=x.shape)
        direction /= np.linalg.norm(direction)
        e = [energy_and_forces(x + k * step * direction, identity)[0] for k in (-2, -1, 1, 2)]
        slope = (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * step)  # fourth-order central difference
        errors.append(abs(slope + float((forces * direction).sum())) / scale)
    rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]  # may reflect as well
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T)
    turned.positions = x @ rotation.T
    rotated = evaluate(module, turned, cutoff, torch.device("cpu"))
    return ExampleCertificate(
        finite_difference_relative_error=max(errors),
        rotation_energy_error_ev=abs(float(rotated.energy[0]) - energy),
        rotation_forces_error_ev_per_angstrom=float(np.abs(rotated.forces.numpy() - forces @ rotation.T).max()),
        permutation_forces_error_ev_per_angstrom=float(np.abs(energy_and_forces(x, permutation)[1] - forces).max()),
    )
