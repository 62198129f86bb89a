"""Milliseconds per evaluation and per step, for structures of three sizes."""

import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.data import atomic_numbers
from scipy.spatial.transform import Rotation

from ggnn_ff.comparison.row import Speed
from ggnn_ff.dynamics.integrators import ASEIntegrator
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.export import LoadedPotential
from ggnn_ff.graph import from_atoms
from ggnn_ff.hosts.ase import GGNNCalculator
from ggnn_ff.neighbors import neighbor_list

_WARM_UP = 3  # TorchScript optimises during its first calls
HEAVY = 1e12  # over real masses: structures that are foreign to the potential must not fly apart while the clock runs


def water_box(n_molecules_per_side: int = 4, density: float = 1.0) -> Atoms:
    """Water molecules on a cubic grid, turned at random, periodic; `density` in g/cm^3."""
    n_molecules = n_molecules_per_side**3
    one = molecule("H2O")
    one.positions -= one.positions[0]
    centimetre = 1e8  # angstrom
    side = (n_molecules * one.get_masses().sum() / units.kg * 1e3 / density) ** (1 / 3) * centimetre
    rotations = Rotation.random(n_molecules, random_state=0).as_matrix()
    corners = np.indices([n_molecules_per_side] * 3).reshape(3, -1).T * (side / n_molecules_per_side)
    positions = corners[:, None] + np.einsum("nab,mb->nma", rotations, one.positions)
    return Atoms(
        numbers=np.tile(one.numbers, n_molecules), positions=positions.reshape(-1, 3), cell=[side] * 3, pbc=True
    )


def structures() -> dict[str, Atoms]:
    """Ethanol, aspirin, and 64 waters: 9, 21 and 192 atoms."""
    aspirin = ase.io.read(Path(__file__).with_name("aspirin.xyz"))
    assert isinstance(aspirin, Atoms)
    return {"ethanol": molecule("CH3CH2OH"), "aspirin": aspirin, "64 waters": water_box()}


def measure_speed(potential: LoadedPotential, evaluations: int, seconds: float) -> list[Speed]:
    """Times a potential as it is, on each of `structures`, with as many threads as torch has now.

    An element that the potential does not know is taken for one that it knows, which changes nothing about its speed.
    """
    known = [atomic_numbers[symbol] for symbol in potential.contract.elements]
    speeds = []
    for name, atoms in structures().items():
        atoms.numbers = np.where(np.isin(atoms.numbers, known), atoms.numbers, known[-1])
        structure = from_atoms(atoms)
        edge_index, shifts = neighbor_list(structure, potential.contract.cutoff)
        tensors = (structure.positions, structure.numbers, structure.cell, edge_index, shifts, structure.batch)
        arguments = [tensor.to(potential.device) for tensor in tensors]

        def evaluate(arguments: list = arguments) -> None:
            potential.module(*arguments, 1)

        atoms.calc = GGNNCalculator(potential, compile=False)
        atoms.set_masses(HEAVY * atoms.get_masses())
        integrator = ASEIntegrator(atoms, make_settings())

        def step(integrator: ASEIntegrator = integrator) -> None:
            integrator.step(1)

        speeds.append(
            Speed(
                structure=name,
                n_atoms=len(atoms),
                evaluation_ms=_milliseconds(evaluate, evaluations, seconds),
                step_ms=_milliseconds(step, evaluations, seconds),
            )
        )
    return speeds


def _milliseconds(call: Callable[[], None], most: int, seconds: float) -> float:
    """Median time of a call, of at least three calls and at most `most` or for `seconds`."""
    for _ in range(_WARM_UP):
        call()
    durations: list[float] = []
    while len(durations) < 3 or (len(durations) < most and sum(durations) < seconds):
        began = time.perf_counter()
        call()
        durations.append(time.perf_counter() - began)
    return 1e3 * float(np.median(durations))
