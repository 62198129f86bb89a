"""The guard in other people's scripts: a context around runs of ASE's and OpenMM's own dynamics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.md.md import MolecularDynamics

from ggnn_ff.contract import Contract, check_elements, tell_of_contract
from ggnn_ff.dynamics.guard import COLLAPSED, DOMAIN_EVERY, NOT_FINITE, Guard
from ggnn_ff.errors import InputError, UnstableDynamics
from ggnn_ff.export import LoadedPotential, as_loaded
from ggnn_ff.graph import from_atoms
from ggnn_ff.neighbors import check_apart
from ggnn_ff.units import ANGSTROM_PER_NANOMETER, EV_PER_KJ_PER_MOL, FEMTOSECOND

ASE_EVERY = 20
"""Steps between looks in ASE, where what is looked at is there already."""


@contextmanager
def guarded(
    dynamics: Any,
    potential: str | Path | LoadedPotential,
    folder: str | Path,
    *,
    temperature: float | None = None,
    on_alarm: str = "warn",
) -> Iterator[Guard]:
    """Watches what `dynamics` does within the block.

    It is looked at every 20 steps in ASE, and in OpenMM every 100, since the energy costs a step there. What is watched
    and what is kept: see `Guard`, which the block gets. All atoms are held against the training data, so it is not for
    systems of which the potential sees some atoms only (`openmm_force` with `atoms`).

    Example:
        with guarded(dynamics, "ethanol-pbe", "alarms", on_alarm="stop"):
            dynamics.run(10_000)

    Args:
        dynamics: an ASE `MolecularDynamics` or an `openmm.app.Simulation` with positions.
        potential: name of a shipped potential, path, or an object from `load_potential`; for its training data.
        folder: receives the frames that led to alarms, beside those of earlier runs, and the last good one.
        temperature: of the bath, K, if there is one: a structure that a bath warms up is hot compared with itself.
        on_alarm: "warn" or "stop"; broken bonds and numbers that are not finite always stop.

    Raises:
        InputError: another kind of dynamics, a temperature that is not positive, or atoms that the potential does not
            know.
        UnstableDynamics: out of the run, where it has to stop.
    """
    if temperature is not None and not 0.0 < temperature < np.inf:
        raise InputError(f"`temperature` must be that of the bath, above 0 K, got {temperature}; without a bath None")
    loaded = as_loaded(potential)
    tell_of_contract(loaded.source, loaded.contract)
    if isinstance(dynamics, MolecularDynamics):
        watched: _Watched = _InASE(dynamics, loaded.contract, Path(folder), temperature, on_alarm)
    elif type(dynamics).__module__.startswith("openmm."):
        watched = _InOpenMM(dynamics, loaded.contract, Path(folder), temperature, on_alarm)
    else:
        raise InputError(
            "`dynamics` must be an ASE MolecularDynamics or an openmm.app.Simulation, got "
            f"{type(dynamics).__module__}.{type(dynamics).__name__}"
        )
    watched.guard.taken = {path.name for path in Path(folder).glob("alarm-*.xyz")}
    watched.attach()
    try:
        yield watched.guard
    except UnstableDynamics:
        raise
    except Exception as error:
        if (lost := watched.lost(error)) is None:
            raise
        raise lost from error
    finally:
        watched.detach()


class _Watched:
    """What both hosts have in common."""

    guard: Guard
    step: Callable[[], int]
    positions: Callable[[], np.ndarray]  # (N, 3), angstrom
    attach: Callable[[], None]
    detach: Callable[[], None]

    def judge(self, *state: Any) -> None:
        """As `Guard.state`; stops the run where it has to."""
        try:
            reason = self.guard.judge(self.step(), self.guard.state(self.step(), *state))
        except UnstableDynamics:
            self.guard.write_last_good()
            raise
        if reason is not None:
            self.guard.write_last_good()
            raise UnstableDynamics(reason)

    def lost(self, error: Exception) -> UnstableDynamics | None:
        """What to raise in place of an error out of the block if the structure is what has broken."""
        last, text = (self.guard.frames[-1] if self.guard.frames else self.guard.start).copy(), ""
        last.positions = self.positions()
        if not np.isfinite(last.positions).all():
            text = NOT_FINITE.format(step=self.step())
        else:
            try:
                check_apart(from_atoms(last))
            except InputError as reason:
                text = COLLAPSED.format(step=self.step(), reason=reason)
        if not text:
            return None
        self.guard.write_last_good()
        return self.guard.lost(self.step(), text)


class _InASE(_Watched):
    """An observer of ASE's dynamics."""

    def __init__(
        self, dynamics: MolecularDynamics, contract: Contract, folder: Path, bath: float | None, on_alarm: str
    ) -> None:
        self.dynamics, self.atoms = dynamics, dynamics.atoms
        check_elements(contract, self.atoms.numbers)
        self.guard = Guard(
            _bare(self.atoms),
            folder,
            self.atoms.get_number_of_degrees_of_freedom(),
            bath=bath,
            domain=contract.domain,
            on_alarm=on_alarm,
        )
        self.observer = self.look  # one object, to be found again

    def attach(self) -> None:
        self.dynamics.attach(self.observer, interval=ASE_EVERY)

    def detach(self) -> None:
        self.dynamics.observers = [one for one in self.dynamics.observers if one[0] is not self.observer]

    def step(self) -> int:
        return self.dynamics.nsteps

    def positions(self) -> np.ndarray:
        return self.atoms.positions

    def look(self) -> None:
        atoms = self.atoms
        energy = float(atoms.get_potential_energy())
        self.judge(atoms.positions.copy(), atoms.get_momenta(), energy, atoms.cell.array.copy())


def _bare(atoms: Atoms) -> Atoms:
    """Without constraints, results and whatever else."""
    bare = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.set_masses(atoms.get_masses())
    bare.set_momenta(atoms.get_momenta())
    return bare


class _InOpenMM(_Watched):
    """A reporter of OpenMM's application layer."""

    def __init__(self, simulation: Any, contract: Contract, folder: Path, bath: float | None, on_alarm: str) -> None:
        from openmm import unit

        self.simulation, self.unit = simulation, unit
        elements = [atom.element for atom in simulation.topology.atoms()]
        if None in elements:
            raise InputError("`dynamics` must have atoms with elements only, got virtual sites; they are not watched")
        system = simulation.system
        masses = [system.getParticleMass(k).value_in_unit(unit.dalton) for k in range(system.getNumParticles())]
        periodic = system.usesPeriodicBoundaryConditions()
        state = simulation.context.getState(positions=True, velocities=True)
        start = Atoms(
            numbers=[element.atomic_number for element in elements],
            positions=state.getPositions(asNumpy=True).value_in_unit(unit.angstrom),
            cell=self.cell(state) if periodic else None,
            pbc=periodic,
            masses=masses,
        )
        check_elements(contract, start.numbers)
        freedom = 3 * int(np.count_nonzero(masses)) - system.getNumConstraints()
        self.masses = start.get_masses()[:, None]
        start.set_momenta(self.momenta(state))
        self.guard = Guard(start, folder, freedom, bath=bath, domain=contract.domain, on_alarm=on_alarm)

    def attach(self) -> None:
        self.simulation.reporters.append(self)

    def detach(self) -> None:
        self.simulation.reporters[:] = [one for one in self.simulation.reporters if one is not self]

    def step(self) -> int:
        return self.simulation.currentStep

    def cell(self, state: Any) -> np.ndarray:
        return state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(self.unit.angstrom)

    def positions(self) -> np.ndarray:
        state = self.simulation.context.getState(positions=True)
        return state.getPositions(asNumpy=True).value_in_unit(self.unit.angstrom)

    def momenta(self, state: Any) -> np.ndarray:
        velocities = state.getVelocities(asNumpy=True).value_in_unit(self.unit.nanometer / self.unit.picosecond)
        to_ase = ANGSTROM_PER_NANOMETER / (1e3 * FEMTOSECOND)  # nm/ps -> angstrom per ASE time
        return velocities * to_ase * self.masses

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:  # noqa: N802 (OpenMM's own form)
        steps = DOMAIN_EVERY - simulation.currentStep % DOMAIN_EVERY
        return {"steps": steps, "periodic": False, "include": ["positions", "velocities", "energy"]}

    def report(self, simulation: Any, state: Any) -> None:
        self.judge(
            np.array(state.getPositions(asNumpy=True).value_in_unit(self.unit.angstrom)),
            self.momenta(state),
            state.getPotentialEnergy().value_in_unit(self.unit.kilojoule_per_mole) * EV_PER_KJ_PER_MOL,
            self.cell(state) if self.guard.start.pbc.any() else None,
        )
