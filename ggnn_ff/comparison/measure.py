"""What is measured of a trained potential: jumps along lines, energy conservation, and stability when hot."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms

from ggnn_ff.comparison.row import Dynamics, LargestJumps
from ggnn_ff.comparison.settings import Sizes
from ggnn_ff.dynamics.layout import COMPLETE, STOPPED
from ggnn_ff.dynamics.run import run_md
from ggnn_ff.dynamics.settings import MDSettings, make_settings
from ggnn_ff.errors import UnstableDynamics
from ggnn_ff.export import LoadedPotential
from ggnn_ff.graph import Structure, from_atoms
from ggnn_ff.neighbors import neighbor_list
from ggnn_ff.stability.conservation import energy_conservation
from ggnn_ff.stability.smoothness import Surface, cutoff_crossings, largest_jumps, order_swaps, random_lines
from ggnn_ff.stability.trajectory import read_trajectory

_AT_ONCE = 32  # structures in one evaluation
_FRICTION = 0.02  # 1/fs


def potential_surface(potential: LoadedPotential, atoms: Atoms) -> Surface:
    """Energies and forces of many structures at once, with the elements and the cell of `atoms`."""
    one = from_atoms(atoms)

    def evaluate(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n_structures = len(positions)
        structure = Structure(
            positions=torch.from_numpy(positions.reshape(-1, 3)),
            numbers=one.numbers.repeat(n_structures),
            cell=one.cell.expand(n_structures, 3, 3),
            pbc=one.pbc.expand(n_structures, 3),
            batch=torch.arange(n_structures).repeat_interleave(len(atoms)),
            n_structures=n_structures,
        )
        edge_index, shifts = neighbor_list(structure, potential.contract.cutoff)
        tensors = (structure.positions, structure.numbers, structure.cell, edge_index, shifts, structure.batch)
        prediction = potential.module(*tensors, n_structures)
        return prediction.energy.numpy(), prediction.forces.numpy().reshape(positions.shape)

    def surface(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [evaluate(positions[start : start + _AT_ONCE]) for start in range(0, len(positions), _AT_ONCE)]
        return np.concatenate([energies for energies, _ in parts]), np.concatenate([forces for _, forces in parts])

    return surface


def measure_jumps(potential: LoadedPotential, atoms: Atoms, sizes: Sizes) -> list[LargestJumps]:
    """The largest jumps near a structure; without crossings of the cutoff if it is periodic.

    Args:
        potential: in float64.
        atoms: a structure as the potential was trained on.
        sizes: how many lines.
    """
    numbers, x, n_lines = atoms.numbers, atoms.positions, sizes.lines
    kinds = {"random lines": (atoms, random_lines(x, n_lines)), "neighbour swaps": (atoms, order_swaps(x, n_lines))}
    if not atoms.pbc.any():
        pair = Atoms(np.concatenate([numbers, numbers]))
        kinds["cutoff crossings"] = (pair, cutoff_crossings(x, potential.contract.cutoff, n_lines))
    found = []
    for kind, (structure, lines) in kinds.items():
        jumps = largest_jumps(potential_surface(potential, structure), lines, sizes.line_step)
        found.append(
            LargestJumps(
                lines=kind,  # type: ignore[arg-type]
                energy_ev=jumps.energy,
                forces_ev_per_angstrom=jumps.forces,
                largest_force_ev_per_angstrom=jumps.largest_force,
            )
        )
    return found


def measure_dynamics(
    potential: LoadedPotential, start: Atoms, folder: Path, sizes: Sizes, seed: int, say: Callable[[str], None]
) -> tuple[Dynamics, Dynamics]:
    """Constant energy from a state that a bath has equilibrated, and a hot bath; each goes on after a kill.

    Args:
        potential: as a user of the defaults has it.
        start: a structure as the potential was trained on.
        folder: receives the runs `equilibration`, `nve` and `hot`.
        sizes: how long, and how hot.
        seed: of velocities and random forces.
        say: is told what begins.

    Returns:
        Of the run at constant energy, and of the hot one.
    """

    def settings(ensemble: str, temperature: float | None, picoseconds: float) -> MDSettings:
        steps = round(1000.0 * picoseconds / sizes.timestep)
        return make_settings(
            ensemble=ensemble,
            temperature=temperature,
            timestep=sizes.timestep,
            steps=steps,
            friction=_FRICTION,
            seed=seed,
            frame_every=min(1000, 10 * (steps // 10)),
        )

    say(f"{sizes.nve_ps:g} ps at constant energy, {sizes.nve_temperature:g} K")
    bath = settings("langevin", sizes.nve_temperature, sizes.equilibration_ps)
    nve = _run(potential, start, folder / "equilibration", bath)
    if nve.stopped is None:
        warm = ase.io.read(folder / "equilibration" / "trajectory.xyz", index=-1, format="extxyz")
        assert isinstance(warm, Atoms)
        nve = _run(potential, warm, folder / "nve", settings("nve", None, sizes.nve_ps))
    else:
        nve = nve.model_copy(update={"picoseconds": 0.0, "stopped": f"before it began: {nve.stopped}"})
    nve = nve.model_copy(update={"temperature": sizes.nve_temperature})
    say(f"{sizes.hot_ps:g} ps in a bath of {sizes.hot_temperature:g} K")
    hot = _run(potential, start, folder / "hot", settings("langevin", sizes.hot_temperature, sizes.hot_ps))
    return nve, hot


def _run(potential: LoadedPotential, start: Atoms, folder: Path, settings: MDSettings) -> Dynamics:
    """Runs, or goes on, unless the run has come to an end before; a run that broke has come to its end."""
    record = folder / "run.json"
    status = json.loads(record.read_text(encoding="utf8"))["status"] if record.exists() else ""
    if status != COMPLETE and not status.startswith(STOPPED):
        with suppress(UnstableDynamics):  # run.json says so
            run_md(potential, start, folder, settings, progress=False, compile=False)
    content = json.loads(record.read_text(encoding="utf8"))
    stopped = None if content["status"] == COMPLETE else content["status"].removeprefix(STOPPED)
    dynamics = Dynamics(
        temperature=settings.temperature or 0.0,
        picoseconds=content["steps_done"] * settings.timestep / 1000.0,
        stopped=stopped,
    )
    if stopped is not None or settings.ensemble != "nve":
        return dynamics
    energies = read_trajectory(folder).energies
    assert energies is not None
    assert energies.times_fs is not None
    assert energies.kinetic is not None
    kept = energy_conservation(energies.times_fs, energies.potential, energies.kinetic, len(start))
    return dynamics.model_copy(
        update={
            "drift_mev_per_atom_per_ps": kept.drift,
            "drift_error": kept.drift_error,
            "fluctuation_mev_per_atom": kept.fluctuation,
        }
    )
