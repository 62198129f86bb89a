"""Unit conversions, each written once, derived from `ase.units` (CODATA 2014).

Inside the package lengths are in angstrom, energies in eV, times in fs, masses in dalton. Units change once on the
way in (`data`, `hosts`) and once on the way out (`hosts`).
"""

from ase import units

EV_PER_KCAL_PER_MOL: float = units.kcal / units.mol
EV_PER_KJ_PER_MOL: float = units.kJ / units.mol
EV_PER_HARTREE: float = units.Hartree
ANGSTROM_PER_BOHR: float = units.Bohr
ANGSTROM_PER_NANOMETER: float = units.nm
KELVIN_TO_EV: float = units.kB
FEMTOSECOND: float = units.fs  # one femtosecond in ASE's own unit of time

ENERGY_UNITS: dict[str, float] = {  # name -> eV per unit
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": EV_PER_KCAL_PER_MOL,
    "kJ/mol": EV_PER_KJ_PER_MOL,
    "hartree": EV_PER_HARTREE,
}
LENGTH_UNITS: dict[str, float] = {  # name -> angstrom per unit
    "angstrom": 1.0,
    "bohr": ANGSTROM_PER_BOHR,
    "nm": ANGSTROM_PER_NANOMETER,
}
