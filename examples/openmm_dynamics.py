"""Langevin dynamics of ethanol in OpenMM with a shipped potential as a TorchForce."""

import openmm
from ase.build import molecule
from openmm import unit

from ggnn_ff import openmm_force
from ggnn_ff.hosts.openmm import make_topology

atoms = molecule("CH3CH2OH")
topology = make_topology(atoms)  # or that of any openmm.app file reader
system = openmm.System()
for atom in topology.atoms():
    system.addParticle(atom.element.mass)
system.addForce(openmm_force("ethanol-pbe", topology))
integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond)
context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
context.setPositions(atoms.positions * unit.angstrom)
openmm.LocalEnergyMinimizer.minimize(context)
for _ in range(10):
    integrator.step(20)
    state = context.getState(energy=True)
    print(f"{state.getTime().value_in_unit(unit.femtosecond):6.1f} fs  {state.getPotentialEnergy()}")
