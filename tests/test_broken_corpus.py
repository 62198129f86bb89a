"""The corpus of broken potentials and trajectories: each is caught by the check meant for it, and hides no other.

A line is a case and the verdicts that must fail; all others that are named must pass. Below is what is right.
Known answers are elsewhere: scaling with the time step in `test_integrator.py` and `test_conservation.py`, diffusion of
a random walk in `test_liquids.py`, frequencies of a spring in `test_vibrations.py`, noise in `test_gradient.py`.
"""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from broken_calculators import (
    Curl,
    DirectForces,
    EnergyJump,
    Exploding,
    Float32,
    ForceJump,
    Half,
    Morse,
    NeverRebuilt,
    Unconverged,
    WrongStressSign,
    cluster,
    crystal,
    direct_forces,
)
from spring_molecule import ethanol, set_temperature, springs

from ggnn_ff.dynamics.layout import ENERGY_COLUMNS
from ggnn_ff.stability.gradient import continuity_verdicts, gradient_verdict, loop_verdict, stress_verdict
from ggnn_ff.stability.integrator import reversibility_verdict
from ggnn_ff.stability.report import check_trajectory
from ggnn_ff.stability.symmetry import history_verdicts, symmetry_verdicts

CUTOFF = 3.6  # of calculators that jump there: random lines take pairs of the cluster across

# --- potentials, by what `ggnn-ff certify` measures on a structure --------------------------------------------------

GRADIENT, LOOPS = "forces against energy differences", "work around closed loops"
STRESS = "stress against energy differences"
ENERGY_JUMP, FORCE_JUMP, LARGEST = "largest energy jump", "largest force jump", "largest force"

REVERSIBILITY, HISTORY = "time reversibility", {"history: energy", "history: forces"}
PERMUTATION = {"permutation of like atoms: energy", "permutation of like atoms: forces"}
OF_MOLECULES = {GRADIENT, LOOPS, ENERGY_JUMP, FORCE_JUMP, LARGEST, REVERSIBILITY, *HISTORY, *PERMUTATION}
OF_MOLECULES |= {"rotation: energy", "rotation: forces", "reflection: energy", "reflection: forces"}
OF_MOLECULES |= {"translation: energy", "translation: forces"}
OF_CRYSTALS = OF_MOLECULES | {STRESS, "lattice translation: energy", "lattice translation: forces"}

# a fresh calculator, the structure, the verdicts that must fail, and those that the fault leaves without judgement
BROKEN_POTENTIALS = {
    "direct force head": (DirectForces, cluster, {GRADIENT, LOOPS}, set()),
    "swirl about a fixed axis": (Curl, cluster, {GRADIENT, LOOPS, "rotation: forces", "reflection: forces"}, set()),
    "jump of the energy at the cutoff": (lambda: EnergyJump(CUTOFF), cluster, {ENERGY_JUMP, FORCE_JUMP}, {LOOPS}),
    "jump of the force at the cutoff": (lambda: ForceJump(CUTOFF), cluster, {FORCE_JUMP}, {LOOPS}),
    "forces that explode where atoms come close": (Exploding, cluster, {LARGEST}, set()),
    "float16 forces": (Half, cluster, {GRADIENT, FORCE_JUMP}, set()),
    "neighbour list that is never rebuilt": (lambda: NeverRebuilt(CUTOFF), cluster, HISTORY | PERMUTATION, set()),
    "stress of the wrong sign": (WrongStressSign, crystal, {STRESS}, set()),
}

RIGHT_POTENTIALS = {
    "Morse": (Morse, cluster, set()),
    "Morse in a crystal": (Morse, crystal, set()),
    "float32": (Float32, cluster, set()),
    "noise of a self-consistent field": (Unconverged, cluster, {GRADIENT, "rotation: energy", "history: energy"}),
}


def potential_outcome(calculator, structure):
    """Whether each verdict passed, by name; without those that need a lattice where there is none."""
    atoms = structure()
    atoms.calc = calculator()
    few = 1 if atoms.pbc.all() else 4  # a crystal needs many times longer
    verdicts = [gradient_verdict(atoms, n_directions=few), loop_verdict(atoms, n_loops=few, n_points=16)]
    verdicts += [*continuity_verdicts(atoms, n_lines=few), *symmetry_verdicts([atoms], n_trials=1)]
    verdicts += [*history_verdicts(atoms, calculator()), stress_verdict(atoms)]
    verdicts.append(reversibility_verdict(atoms, n_steps=20))
    return {verdict.name: verdict.passed for verdict in verdicts if verdict.value is not None}


@pytest.mark.parametrize("case", BROKEN_POTENTIALS)
def test_broken_potential_is_caught(case):
    calculator, structure, caught, hidden = BROKEN_POTENTIALS[case]
    names = OF_CRYSTALS if structure is crystal else OF_MOLECULES
    expected = dict.fromkeys(names, True) | dict.fromkeys(caught, False) | dict.fromkeys(hidden)
    assert potential_outcome(calculator, structure) == expected


@pytest.mark.parametrize("case", RIGHT_POTENTIALS)
def test_right_potential_passes(case):
    calculator, structure, hidden = RIGHT_POTENTIALS[case]
    names = OF_CRYSTALS if structure is crystal else OF_MOLECULES
    assert potential_outcome(calculator, structure) == dict.fromkeys(names, True) | dict.fromkeys(hidden)


# --- trajectories, by `ggnn-ff check` -------------------------------------------------------------------------------

STEPS = 500


class DirectSprings(Calculator):
    """Ethanol's springs, and forces that are no gradient."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, forces = springs(atoms.positions)
        self.results = {"energy": energy, "forces": forces + 0.1 * direct_forces(atoms.positions)}


def start(calculator=None, masses=None):
    atoms = ethanol()
    atoms.calc = calculator or atoms.calc
    if masses is not None:
        atoms.set_masses(masses)
    set_temperature(atoms, 300.0, np.random.default_rng(0))
    return at_rest(atoms)


def at_rest(atoms):
    """Without motion of the centre of mass."""
    masses = atoms.get_masses()[:, None]
    atoms.set_momenta(atoms.get_momenta() - masses * atoms.get_momenta().sum(axis=0) / masses.sum())
    return atoms


def argon():
    atoms = Atoms("Ar4", 3.8 / np.sqrt(8) * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]))
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=30.0)
    set_temperature(atoms, 10.0, np.random.default_rng(0))
    return at_rest(atoms)


def bound_by_electrons():
    tblite = pytest.importorskip("tblite.ase")
    atoms = start()
    atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
    return atoms


def run(folder, atoms, timestep=0.5, steps=STEPS, friction=None, change=lambda frame: None):
    """A run folder that says it is NVE, with a frame and a row of energies at every step, each changed before."""
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    if friction is not None:
        random = np.random.default_rng(1)
        dynamics = Langevin(
            atoms, timestep * units.fs, temperature_K=300, friction=friction / units.fs, rng=random, fixcm=False
        )
    frames, rows = [], [",".join(ENERGY_COLUMNS)]
    for step in range(steps + 1):
        frame = atoms.copy()
        frame.info = {"step": step, "time_fs": step * timestep}
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy())
        change(frame)
        potential, kinetic = frame.calc.results["energy"], frame.get_kinetic_energy()
        rows.append(f"{step},{step * timestep},{potential},{kinetic},{potential + kinetic},300.0")
        frames.append(frame)
        dynamics.run(1)
    folder.mkdir()
    ase.io.write(folder / "trajectory.xyz", frames, format="extxyz", columns=["symbols", "positions", "momenta"])
    (folder / "energies.csv").write_text("\n".join(rows) + "\n")
    (folder / "run.json").write_text(json.dumps({"ensemble": "nve", "n_atoms": len(atoms)}))
    return folder


def scaled(positions=1.0, momenta=1.0, energy=1.0):
    def change(frame):
        frame.positions *= positions
        frame.set_momenta(frame.get_momenta() * momenta)
        frame.calc.results["energy"] *= energy

    return change


def torn(frame):
    """A hydrogen atom leaves slowly from half of the run on."""
    away = max(0, frame.info["step"] - STEPS // 2) * 0.003
    frame.positions[3] += away * (frame.positions[3] - frame.positions[2]) / frame.get_distance(2, 3)


def ordinary_masses(frame):
    frame.set_masses()


DEUTERATED = np.where(ethanol().numbers == 1, 2.014, ethanol().get_masses())
DRIFT, RATIO, LINEAR, ANGULAR = "energy drift", "energy fluctuation / kinetic", "linear momentum", "angular momentum"
VELOCITIES, LENGTHS = "velocities", "length unit"
BONDS, BROKEN, FORMED = "largest bond deviation", "bonds broken", "bonds formed"
JUDGED = {DRIFT, RATIO, LINEAR, ANGULAR, VELOCITIES, LENGTHS, BONDS, BROKEN, FORMED, "evaporated fragments"}

# what is done, the verdicts that must fail, and those that may or cannot be judged, since they follow from the fault
BROKEN_TRAJECTORIES = {
    "direct force head": ({"atoms": lambda: start(DirectSprings())}, {RATIO}, {DRIFT}),
    "time step too large": ({"timestep": 2.5}, {RATIO}, {DRIFT, VELOCITIES}),
    "thermostat left on": ({"friction": 0.02}, {RATIO, LINEAR, ANGULAR}, {DRIFT}),
    "wrong mass": (
        {"atoms": lambda: start(masses=DEUTERATED), "change": ordinary_masses},
        {RATIO, VELOCITIES},
        {DRIFT},
    ),
    "broken bond": ({"change": torn}, {BONDS, BROKEN}, {ANGULAR}),  # whose arm grew
    "positions in nm": ({"change": scaled(positions=0.1)}, {LENGTHS, VELOCITIES}, set()),
    "positions in bohr": ({"change": scaled(positions=1 / units.Bohr)}, {LENGTHS, VELOCITIES}, {BONDS, BROKEN}),
    "velocities in angstrom/fs": ({"change": scaled(momenta=units.fs)}, {RATIO, VELOCITIES}, {DRIFT}),
    "energies in kcal/mol": ({"change": scaled(energy=units.mol / units.kcal)}, {RATIO}, {DRIFT}),
    "energies in hartree": ({"change": scaled(energy=1 / units.Hartree)}, {RATIO}, {DRIFT}),
}

# what is done, and the verdicts that it does not allow
RIGHT_TRAJECTORIES = {
    "springs": ({}, set()),
    "springs, larger time step": ({"timestep": 1.0}, set()),
    "Lennard-Jones": ({"atoms": argon, "timestep": 5.0}, {LENGTHS, BONDS, BROKEN}),  # no bonds
    "GFN2-xTB": ({"atoms": bound_by_electrons, "steps": 400}, set()),
}


def trajectory_outcome(folder, atoms=start, **settings):
    """Whether each verdict passed, by name."""
    report = check_trajectory(run(folder / "run", atoms(), **settings))
    return {verdict.name: verdict.passed for verdict in report.verdicts}


def those(outcome, passed):
    return {name for name, one in outcome.items() if one is passed}


@pytest.mark.parametrize("case", BROKEN_TRAJECTORIES)
def test_broken_trajectory_is_caught(case, tmp_path):
    settings, caught, explained = BROKEN_TRAJECTORIES[case]
    outcome = trajectory_outcome(tmp_path, **settings)
    assert caught <= those(outcome, False) <= caught | explained
    assert JUDGED - caught - explained <= those(outcome, True)


@pytest.mark.parametrize("case", RIGHT_TRAJECTORIES)
def test_right_trajectory_passes(case, tmp_path):
    settings, hidden = RIGHT_TRAJECTORIES[case]
    outcome = trajectory_outcome(tmp_path, **settings)
    assert those(outcome, True) == JUDGED - hidden
    assert not those(outcome, False)


@pytest.mark.parametrize(("factor", "unit"), [(0.1, "nm"), (1 / units.Bohr, "bohr")])
def test_positions_alone_tell_their_unit(factor, unit, tmp_path):
    atoms = ethanol()
    atoms.calc = None
    ase.io.write(tmp_path / "right.xyz", atoms)
    atoms.positions *= factor
    ase.io.write(tmp_path / "wrong.xyz", atoms)
    verdicts = [
        next(verdict for verdict in check_trajectory(tmp_path / name).verdicts if verdict.name == LENGTHS)
        for name in ("right.xyz", "wrong.xyz")
    ]
    assert [verdict.passed for verdict in verdicts] == [True, False]
    assert unit in verdicts[1].explanation


def test_frames_too_far_apart_for_their_velocities_are_not_judged(tmp_path):
    folder = run(tmp_path / "run", start(), steps=200)
    frames = ase.io.read(folder / "trajectory.xyz", index="::50", format="extxyz")
    ase.io.write(tmp_path / "sparse.xyz", frames)
    (verdict,) = [v for v in check_trajectory(tmp_path / "sparse.xyz").verdicts if v.name == VELOCITIES]
    assert verdict.passed is None


@pytest.mark.parametrize(("interval", "passed"), [(0.5, True), (10.0, None)])
def test_a_vibration_that_frames_nearly_miss_is_not_judged(interval, passed, tmp_path):
    """A period takes 11 fs; after 10 the velocity is nearly the same, but not so in between."""
    frames, rate = [], 2.0 * np.pi / 11.0  # 1/fs
    for time in interval * np.arange(50):
        atoms = Atoms("OH", positions=[[0.0, 0.0, 0.0], [0.0, 0.0, 0.97 + 0.1 * np.sin(rate * time)]])
        atoms.set_velocities([[0.0, 0.0, 0.0], [0.0, 0.0, 0.1 * rate * np.cos(rate * time) / units.fs]])
        atoms.info["time_fs"] = time
        frames.append(atoms)
    ase.io.write(tmp_path / "vibration.xyz", frames)
    (verdict,) = [v for v in check_trajectory(tmp_path / "vibration.xyz").verdicts if v.name == VELOCITIES]
    assert verdict.passed is passed
