"""Constant-energy dynamics of ethanol in ASE with a shipped potential; prints the total energy every 10 fs."""

import numpy as np
from ase import units
from ase.build import molecule
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from ggnn_ff import GGNNCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = GGNNCalculator("ethanol-pbe")
BFGS(atoms, logfile=None).run(fmax=0.01)
thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
for _ in range(10):
    dynamics.run(20)
    print(f"{dynamics.get_time() / units.fs:6.1f} fs  {atoms.get_total_energy():.6f} eV")
