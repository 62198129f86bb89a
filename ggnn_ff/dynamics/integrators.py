"""Integrators of the two hosts with the same verbs: step, read the state, save and restore it."""

import json
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from ggnn_ff.dynamics.settings import MDSettings
from ggnn_ff.export import LoadedPotential
from ggnn_ff.graph import from_atoms
from ggnn_ff.hosts.openmm import make_topology, openmm_force
from ggnn_ff.neighbors import check_apart
from ggnn_ff.units import ANGSTROM_PER_NANOMETER, EV_PER_KJ_PER_MOL, FEMTOSECOND


class Integrator(Protocol):
    """A system that moves."""

    def step(self, n_steps: int) -> None:
        """Integrates `n_steps`.

        Raises:
            FloatingPointError: numbers are no longer finite.
            InputError: atoms are on one place.
        """

    def read(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Positions (N, 3) in angstrom, momenta (N, 3) in ASE's units and the potential energy in eV."""

    def save(self) -> dict[str, np.ndarray]:
        """All that is needed to go on exactly from here."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes back to a saved state.

        Raises:
            ValueError, KeyError: this is not a state of this integrator and system.
        """


class ASEIntegrator:
    """Velocity Verlet or Langevin by ASE; `atoms` carries its calculator and momenta."""

    def __init__(self, atoms: Atoms, settings: MDSettings) -> None:
        self.atoms = atoms
        self.random = np.random.default_rng([settings.seed, 1])
        timestep = settings.timestep * FEMTOSECOND
        self.integrator: Any
        if settings.ensemble == "nve":
            self.integrator = VelocityVerlet(atoms, timestep)
        else:
            friction = settings.friction / FEMTOSECOND
            self.integrator = Langevin(
                atoms,
                timestep,
                temperature_K=settings.temperature,
                friction=friction,
                fixcm=False,
                rng=self.random,
            )

    def step(self, n_steps: int) -> None:
        """Integrates `n_steps`."""
        forces = self.atoms.get_forces()
        for _ in range(n_steps):
            forces = self.integrator.step(forces)
            if not np.isfinite(forces).all():
                raise FloatingPointError("forces are not finite")

    def read(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Positions, momenta, potential energy."""
        return self.atoms.positions.copy(), self.atoms.get_momenta(), float(self.atoms.get_potential_energy())

    def save(self) -> dict[str, np.ndarray]:
        """Positions, momenta and the state of the random numbers."""
        generator = json.dumps(self.random.bit_generator.state).encode()
        return {
            "positions": self.atoms.positions,
            "momenta": self.atoms.get_momenta(),
            "random": np.frombuffer(generator, dtype=np.uint8),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes back to a saved state."""
        self.atoms.positions = state["positions"]
        self.atoms.set_momenta(state["momenta"], apply_constraint=False)
        self.random.bit_generator.state = json.loads(state["random"].tobytes())


class OpenMMIntegrator:
    """Velocity Verlet or the middle Langevin scheme by OpenMM on the Reference platform (double precision)."""

    def __init__(self, atoms: Atoms, potential: LoadedPotential, settings: MDSettings) -> None:
        import openmm
        from openmm import unit

        self.unit, self.failure = unit, openmm.OpenMMException
        self.atoms, self.masses = atoms.copy(), atoms.get_masses()
        topology = make_topology(atoms)
        system = openmm.System()
        for mass in self.masses:
            system.addParticle(float(mass))
        if atoms.pbc.all():
            system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / ANGSTROM_PER_NANOMETER))
        system.addForce(openmm_force(potential, topology, backend=settings.backend, compile=False))
        timestep = settings.timestep * unit.femtosecond
        if settings.ensemble == "nve":
            integrator = velocity_verlet(timestep)
        else:
            friction = settings.friction / unit.femtosecond
            integrator = openmm.LangevinMiddleIntegrator(settings.temperature * unit.kelvin, friction, timestep)
            integrator.setRandomNumberSeed(settings.seed % (2**31 - 1) + 1)  # 32 bits, and 0 is a seed by chance
        self.context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
        self.context.setPositions(atoms.positions / ANGSTROM_PER_NANOMETER)
        self.to_velocity = FEMTOSECOND * 1e3 / ANGSTROM_PER_NANOMETER  # angstrom per ASE time -> nm/ps
        self.context.setVelocities(atoms.get_velocities() * self.to_velocity)

    def step(self, n_steps: int) -> None:
        """Integrates `n_steps`."""
        try:
            self.context.getIntegrator().step(n_steps)
        except self.failure as error:
            positions = self.context.getState(positions=True).getPositions(asNumpy=True)
            self.atoms.positions = positions.value_in_unit(self.unit.angstrom)
            if not np.isfinite(self.atoms.positions).all():
                raise FloatingPointError("positions are not finite") from error
            check_apart(from_atoms(self.atoms))
            raise

    def read(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Positions, momenta, potential energy."""
        state = self.context.getState(positions=True, velocities=True, energy=True)
        positions = state.getPositions(asNumpy=True).value_in_unit(self.unit.angstrom)
        velocities = state.getVelocities(asNumpy=True).value_in_unit(self.unit.nanometer / self.unit.picosecond)
        energy = state.getPotentialEnergy().value_in_unit(self.unit.kilojoule_per_mole) * EV_PER_KJ_PER_MOL
        return np.array(positions), velocities / self.to_velocity * self.masses[:, None], float(energy)

    def save(self) -> dict[str, np.ndarray]:
        """OpenMM's own checkpoint: positions, velocities, time and random numbers."""
        return {"checkpoint": np.frombuffer(self.context.createCheckpoint(), dtype=np.uint8)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes back to a saved state."""
        try:
            self.context.loadCheckpoint(state["checkpoint"].tobytes())
        except self.failure as error:
            raise ValueError(str(error)) from error


def velocity_verlet(timestep: Any) -> Any:
    """Velocity Verlet for OpenMM, with positions and velocities at the same time (its own Verlet is leapfrog)."""
    import openmm

    integrator = openmm.CustomIntegrator(timestep)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v + 0.5 * dt * f / m")
    integrator.addComputePerDof("x", "x + dt * v")
    integrator.addComputePerDof("v", "v + 0.5 * dt * f / m")
    return integrator
