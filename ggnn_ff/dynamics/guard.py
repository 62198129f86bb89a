"""Watches a run while it goes, and keeps the frames that led to what looks wrong."""

import io
import json
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from ggnn_ff.bonds import LONGEST_DEVIATION, bond_lengths, bond_name, bonds
from ggnn_ff.contract import Domain
from ggnn_ff.domain import DomainCheck
from ggnn_ff.errors import InputError, UnstableDynamics, tell
from ggnn_ff.files import holding, write_atomically
from ggnn_ff.graph import Structure, from_atoms, moved
from ggnn_ff.units import KELVIN_TO_EV

LAST_GOOD = "last_good.xyz"

FRAMES_KEPT = 20
"""Looks whose frames are kept, and whose energies and temperatures are what is usual."""

DOMAIN_EVERY = 100
"""Steps between comparisons with the training data, and the most between looks at a run.

Comparisons cost about what one step of a compiled potential costs for a molecule; so they add 1 % to the run.
"""

ENERGY_JUMP = 10.0
"""A change of the total energy is a jump when it is so many times the root mean square of the changes before.

Changes by integration errors and by baths have a normal distribution at best: then ten is never reached.
"""

LEAST_ENERGY_JUMP = 1e-4
"""eV; kT counts where it is more. Two correct evaluations in float32 may differ by that much."""

TEMPERATURE_SIGMAS = 6.0
"""A temperature is a jump when a canonical ensemble is above it as seldom as a normal one above so many deviations.

That is once in 1e9 looks.
"""

NOT_FINITE = (
    "positions, forces or energy are not finite by step {step}; the last good frame is in last_good.xyz. Use a shorter "
    "time step, or train on more structures of this kind"
)
FIRST_NOT_FINITE = (
    "momenta, forces or energy of the first structure are not finite; its positions must be in angstrom, and no two "
    "atoms too near to each other"
)
COLLAPSED = "the structure broke by step {step}: {reason}; the last good frame is in last_good.xyz"


def columns_of(state: Atoms) -> list[str]:
    """What extxyz files of a run hold; masses where they were set, for they need not be those of the elements."""
    return ["symbols", "positions", "momenta", *(["masses"] if state.has("masses") else [])]


@dataclass
class Alarm:
    """One kind of alarm in a run.

    Attributes:
        step: of the first one.
        text: what it said.
        looks: how many looks found it.
        saved: name of the file with the frames that led to the first one.
    """

    step: int
    text: str
    looks: int
    saved: str | None


class Guard:
    """Looks at the states of a run, one after the other.

    A number that is not finite, and a bond that deviates by more than `LONGEST_DEVIATION` from its first length, always
    end a run. The other kinds of alarm end it with `on_alarm` "stop"; with "warn" they are told once and counted:

    - `temperature`: above that of the bath, or without one above the mean of the last `FRAMES_KEPT` looks, so far as a
      canonical ensemble never is: T / T_0 > (1 - 2 / (9 n) + z sqrt(2 / (9 n)))^3 with n degrees of freedom and z =
      `TEMPERATURE_SIGMAS` (Wilson and Hilferty, Proc. Natl. Acad. Sci. 17, 684, 1931).
    - `energy`: the total energy changes between looks by more than kT and `ENERGY_JUMP` times the root mean square of
      the last `FRAMES_KEPT` changes.
    - `distance` and `novelty`, every `DOMAIN_EVERY` steps, for potentials with a description of their training data:
      see `domain`.

    Attributes:
        alarms: by kind.
        taken: names of files of earlier runs in the folder, which stay as they are.
        start: the first structure, with momenta.
        last_good: the last state that raised no alarm, and was not preceded by a comparison with the training data that
            did; `start` while there is none.
    """

    def __init__(
        self,
        start: Atoms,
        folder: Path,
        degrees_of_freedom: int,
        *,
        bath: float | None = None,
        domain: Domain | None = None,
        on_alarm: str = "warn",
    ) -> None:
        """Takes the bonds of `start`.

        Args:
            start: the first structure.
            folder: receives `alarm-KIND.xyz` at the first alarm of each kind (the last frames that were looked at, the
                one of the alarm last) and `last_good.xyz` at the end.
            degrees_of_freedom: that share the kinetic energy.
            bath: K, if there is one.
            domain: of the potential's contract.
            on_alarm: "warn" or "stop".
        """
        if on_alarm not in ("warn", "stop"):
            raise InputError(f"`on_alarm` must be 'warn' or 'stop', got {on_alarm!r}")
        self.folder, self.degrees_of_freedom, self.bath, self.on_alarm = folder, degrees_of_freedom, bath, on_alarm
        self.start = start.copy()
        self.start.set_momenta(start.get_momenta(), apply_constraint=False)  # zeros, where there are none
        self.last_good = self.start
        self.bonds = bonds(start.numbers, start.positions, start.cell.array, start.pbc)
        self.first_lengths = self._lengths(start)
        self.domain = None if domain is None else DomainCheck(domain, start.numbers)
        self.structure: Structure | None = None  # for comparisons with the training data, to be moved
        self.cell = start.cell.array.copy()  # of `structure`
        self.alarms: dict[str, Alarm] = {}
        self.taken: set[str] = set()
        self.frames: deque[Atoms] = deque(maxlen=FRAMES_KEPT)
        self.temperatures: deque[float] = deque(maxlen=FRAMES_KEPT)
        self.energies: deque[float] = deque(maxlen=FRAMES_KEPT + 1)
        self.last_step: int | None = None  # of the last look
        self.outside = False  # of the training data, at the last comparison
        n = 2.0 / (9.0 * max(degrees_of_freedom, 1))
        self.hottest = (1.0 - n + TEMPERATURE_SIGMAS * np.sqrt(n)) ** 3  # over the usual temperature

    def state(
        self, step: int, positions: np.ndarray, momenta: np.ndarray, energy: float, cell: np.ndarray | None = None
    ) -> Atoms:
        """A state of the run with its potential energy: positions (N, 3), momenta (N, 3), cell (3, 3) if it changes.

        Raises:
            UnstableDynamics: a number is not finite.
        """
        if not (np.isfinite(positions).all() and np.isfinite(momenta).all() and np.isfinite(energy)):
            raise self.lost(step, NOT_FINITE.format(step=step) if step else FIRST_NOT_FINITE)
        state = self.start.copy()
        if cell is not None:
            state.cell = cell
        state.positions = positions
        state.set_momenta(momenta, apply_constraint=False)
        state.info = {"step": step}
        state.calc = SinglePointCalculator(state, energy=energy)
        return state

    def judge(self, step: int, state: Atoms) -> str | None:
        """Looks at a state from `state`, and deals with the alarms; why the run has to end here, or None."""
        self.frames.append(state)
        kinetic = state.get_kinetic_energy()
        total = state.calc.results["energy"] + kinetic  # the calculator's own method compares structures first
        temperature = 2.0 * kinetic / (max(self.degrees_of_freedom, 1) * KELVIN_TO_EV)
        found = {
            "bond": self._broken_bond(step, state),
            "temperature": self._too_hot(step, temperature),
            "energy": self._energy_jump(step, total),
        }
        if self.last_step is None or step // DOMAIN_EVERY > self.last_step // DOMAIN_EVERY:
            said = self._outside(step, state)
            self.outside = any(said.values())
            found |= said
        self.last_step = step
        self.temperatures.append(temperature)
        self.energies.append(total)
        reasons = [self._alarm(kind, step, text) for kind, text in found.items() if text is not None]
        if not reasons and not self.outside:
            self.last_good = state
        return next((reason for reason in reasons if reason is not None), None)

    def lost(self, step: int, text: str) -> UnstableDynamics:
        """The error to raise where there is no state to look at: numbers are not finite, or atoms on one place."""
        return UnstableDynamics(self._alarm("failure", step, text))

    def write_last_good(self) -> None:
        """Keeps the last frame that was in order."""
        self._write(LAST_GOOD, [self.last_good])

    def record(self) -> dict[str, Any]:
        """The alarms by kind, for JSON."""
        return {kind: asdict(alarm) for kind, alarm in self.alarms.items()}

    def save(self) -> dict[str, np.ndarray]:
        """What is needed to go on looking exactly as before; of the frames only the last good one."""
        good = self.last_good
        content = {
            "alarms": self.record(),
            "temperatures": list(self.temperatures),
            "energies": list(self.energies),
            "last_step": self.last_step,
            "outside": self.outside,
            "last_good": None if good is self.start else (good.info["step"], good.calc.results["energy"]),
        }
        return {
            "guard": np.frombuffer(json.dumps(content).encode(), dtype=np.uint8),
            "last_good": np.stack([good.positions, good.get_momenta()]),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes back to a saved state of a run in one cell; to none where that was saved without a guard."""
        if "guard" not in state:
            return
        content = json.loads(state["guard"].tobytes())
        self.alarms = {kind: Alarm(**alarm) for kind, alarm in content["alarms"].items()}
        self.temperatures.extend(content["temperatures"])
        self.energies.extend(content["energies"])
        self.last_step, self.outside = content["last_step"], content.get("outside", False)
        if content.get("last_good") is not None:  # of older runs it is not known
            (step, energy), (positions, momenta) = content["last_good"], state["last_good"]
            self.last_good = self.state(step, positions, momenta, energy)

    def _alarm(self, kind: str, step: int, text: str) -> str | None:
        """Counts an alarm, and at the first of its kind keeps the frames; why the run has to end, or None."""
        alarm, first = self.alarms.get(kind), kind not in self.alarms
        if alarm is None:
            saved = self._new_name(kind) if self.frames else None
            if saved is not None:
                self._write(saved, list(self.frames))
            alarm = self.alarms[kind] = Alarm(step, text, 0, saved)
        alarm.looks += 1
        if kind in ("bond", "failure"):
            return text
        text = f"{text}; the frames that led there are in {alarm.saved}"
        if self.on_alarm == "stop":
            return f"{text}, and the last good one is in {LAST_GOOD}"
        if first:
            tell(f"{self.folder}: {text}. The run goes on, and more of this kind are counted only")
        return None

    def _new_name(self, kind: str) -> str:
        name, number = f"alarm-{kind}.xyz", 1
        while name in self.taken:
            number += 1
            name = f"alarm-{kind}-{number}.xyz"
        return name

    def _lengths(self, state: Atoms) -> np.ndarray:
        return bond_lengths(state.positions, self.bonds, state.cell.array, state.pbc)

    def _broken_bond(self, step: int, state: Atoms) -> str | None:
        """What to say of the bond that deviates most, or None if all are in order."""
        deviations = np.abs(self._lengths(state) - self.first_lengths)
        if not deviations.size or deviations.max() <= LONGEST_DEVIATION:
            return None
        bond = bond_name(state.numbers, self.bonds[int(deviations.argmax())])
        return (
            f"the bond {bond} deviates by {deviations.max():.2f} angstrom from its first length at step {step}, more "
            f"than {LONGEST_DEVIATION}; the last good frame is in {LAST_GOOD}. Use a lower temperature or time step, "
            "or train on structures like it"
        )

    def _usual_temperature(self) -> float | None:
        """K; None while there are too few looks to say."""
        if self.bath is not None:
            return self.bath
        return float(np.mean(self.temperatures)) if len(self.temperatures) == FRAMES_KEPT else None

    def _too_hot(self, step: int, temperature: float) -> str | None:
        usual = self._usual_temperature()
        if usual is None or usual <= 0.0 or temperature <= self.hottest * usual:
            return None
        whose = "of the bath" if self.bath is not None else f"of the last {FRAMES_KEPT} looks"
        return (
            f"the temperature is {temperature:.0f} K at step {step}, where that {whose} is {usual:.0f} K and more than "
            f"{self.hottest * usual:.0f} K is no fluctuation"
        )

    def _energy_jump(self, step: int, total: float) -> str | None:
        usual = self._usual_temperature()
        if usual is None or len(self.energies) <= FRAMES_KEPT:
            return None
        change = total - self.energies[-1]
        before = float(np.sqrt(np.mean(np.diff(self.energies) ** 2)))
        if abs(change) <= max(ENERGY_JUMP * before, KELVIN_TO_EV * usual, LEAST_ENERGY_JUMP):
            return None
        return (
            f"the total energy has changed by {change:.3g} eV at step {step} since the look before, where changes were "
            f"{before:.2g} eV"
        )

    def _outside(self, step: int, state: Atoms) -> dict[str, str | None]:
        """What to say of distances and surroundings that the training data does not have."""
        if self.domain is None:
            return {}
        cell = state.cell.array
        if self.structure is None or not np.array_equal(cell, self.cell):
            self.structure, self.cell = from_atoms(state), cell.copy()
        try:
            findings = self.domain.look(moved(self.structure, state.positions), turn=step // DOMAIN_EVERY)
        except InputError as error:
            return {"distance": f"the structure broke by step {step}: {error}"}
        said: dict[str, str | None] = {}
        if (strange := findings.distance) is not None:
            first, second = (f"{state.symbols[atom]}{atom}" for atom in strange.atoms)
            usual = f"never within {self.domain.domain.cutoff:g} angstrom"
            if strange.seen is not None:
                usual = "{:.2f} to {:.2f} angstrom apart".format(*strange.seen)
            said["distance"] = (
                f"{first} and {second} are {strange.length:.2f} angstrom apart at step {step}; such atoms are {usual} "
                "in the training data"
            )
        novelty, threshold = float(findings.novelty.max()), self.domain.domain.threshold
        if novelty > threshold:
            atom = int(findings.judged[findings.novelty.argmax()])
            said["novelty"] = (
                f"the surroundings of {state.symbols[atom]}{atom} at step {step} are unlike any in the training data "
                f"(novelty {novelty:.1f}, threshold {threshold:.1f})"
            )
        return said

    def _write(self, name: str, frames: list[Atoms]) -> None:
        text = io.StringIO()
        write_extxyz(text, frames, columns=columns_of(frames[0]))
        write_atomically(self.folder / name, holding(text.getvalue()))
