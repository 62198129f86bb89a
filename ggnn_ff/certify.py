"""A potential proves itself: every check of `stability/`, on the potential and on dynamics with it, in one folder."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError
from pydantic import BaseModel, ConfigDict, Field

from ggnn_ff.contract import Certification, CertifiedFigure, check_elements
from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.readers import read_frames
from ggnn_ff.dynamics.replicas import run_replicas
from ggnn_ff.dynamics.run import run_md
from ggnn_ff.dynamics.settings import MDSettings, make_settings
from ggnn_ff.errors import InputError, UnstableDynamics
from ggnn_ff.export import LoadedPotential
from ggnn_ff.files import holding, write_atomically
from ggnn_ff.md17_stability import whole_molecules
from ggnn_ff.stability.gradient import continuity_verdicts, gradient_verdict, loop_verdict, stress_verdict
from ggnn_ff.stability.html import broken_bond, render_html
from ggnn_ff.stability.integrator import (
    convergence_verdict,
    reversibility_verdict,
    scaling_verdicts,
    time_step_scaling,
    total_energies,
)
from ggnn_ff.stability.plots import check_panels, new_figure
from ggnn_ff.stability.report import Report, check, check_trajectory
from ggnn_ff.stability.symmetry import history_verdicts, symmetry_verdicts
from ggnn_ff.stability.topology import collapse_times, collapse_verdict
from ggnn_ff.stability.trajectory import Trajectory, read_trajectory
from ggnn_ff.stability.verdict import Verdict
from ggnn_ff.stability.vibrations import frequency_verdicts, harmonic_frequencies
from ggnn_ff.subjects import Subject
from ggnn_ff.training.evaluation import evaluate_frames

Measure = Callable[..., Verdict | list[Verdict]]
_MOST_LABELLED = 1000  # frames of reference data that are evaluated


class Protocol(BaseModel):
    """How long, how hot, how often."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    timestep: float = Field(default=0.5, gt=0.0, description="fs, of all runs but the scaling's")
    temperature: float = Field(default=300.0, gt=0.0, description="K, before the runs at constant energy")
    equilibration_ps: float = Field(default=5.0, gt=0.0)
    scaling_timesteps: tuple[float, ...] = Field(default=(0.25, 0.5, 1.0), min_length=3, description="fs")
    scaling_ps: float = Field(default=1.0, gt=0.0, description="of each run of the scaling")
    nve_ps: float = Field(default=20.0, gt=0.0, alias="nve")
    hot_temperature: float = Field(default=500.0, gt=0.0, description="K")
    hot_ps: float = Field(default=100.0, gt=0.0, alias="hot", description="of each hot run")
    seeds: int = Field(default=3, ge=1, description="hot runs")


@dataclass(frozen=True)
class Certificate:
    """All that was found.

    Attributes:
        subject: name of what was certified.
        structure: chemical formula.
        sections: title to verdicts.
        nve: the check of the run at constant energy, None if it did not come to it.
        hot: the checks of the hot runs.
        protocol: how much was measured.
    """

    subject: str
    structure: str
    sections: Mapping[str, list[Verdict]]
    nve: Report | None
    hot: Sequence[Report]
    protocol: Protocol

    @property
    def verdicts(self) -> list[Verdict]:
        """All of them."""
        return [verdict for verdicts in self.sections.values() for verdict in verdicts]

    @property
    def passed(self) -> bool:
        """Whether none failed, and the energy drift was judged."""
        return self._drift_judged and all(verdict.passed is not False for verdict in self.verdicts)

    @property
    def _drift_judged(self) -> bool:
        return any(verdict.name == "energy drift" and verdict.passed is not None for verdict in self.verdicts)

    @property
    def summary(self) -> str:
        """In one line."""
        judged = [verdict for verdict in self.verdicts if verdict.passed is not None]
        failed = [verdict.name for verdict in judged if not verdict.passed]
        if failed:
            return f"FAILED: {', '.join(failed)}"
        if not self._drift_judged:
            return f"inconclusive: {len(judged)} checks judged, the energy drift not among them; run longer with --nve"
        return f"passed, {len(judged)} checks judged"


def certify(
    subject: Subject,
    atoms: Atoms,
    folder: Path,
    protocol: Protocol,
    reference_data: Path | None = None,
    reference: Calculator | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Certificate:
    """Runs the battery, or goes on with it; writes `certificate.json` and `certificate.html`.

    Args:
        subject: from `potential_subject` or `calculator_subject`.
        atoms: a structure near a minimum, as the potential is meant for.
        folder: receives the runs as well; one subject, structure and protocol each.
        protocol: how much.
        reference_data: labelled frames for errors and, if they are of this molecule, for the distributions of distances
            and dihedral angles in the hot runs; or None.
        reference: the method that labelled them, for harmonic frequencies, or None.
        say: is told what begins.

    A potential that cannot be evaluated somewhere fails the checks that go there.

    Raises:
        InputError: a structure or data that do not fit, or a folder with runs of something else.
    """
    labelled = None if reference_data is None else read_frames(reference_data)
    if isinstance(subject.used, LoadedPotential):
        check_elements(subject.used.contract, atoms.numbers)
        if labelled is not None:
            check_elements(subject.used.contract, labelled.numbers)
    expected = None if labelled is None else _expected(labelled, atoms, say)
    exact = atoms.copy()
    exact.calc = subject.exact
    sections: dict[str, list[Verdict]] = {}
    say("symmetry")
    sections["symmetry"] = [
        *_evaluated(symmetry_verdicts, [exact]),
        *_evaluated(history_verdicts, exact, subject.fresh),
    ]
    say("forces as a gradient")
    measures: list[Measure] = [
        gradient_verdict,
        loop_verdict,
        continuity_verdicts,
        *([stress_verdict] if atoms.pbc.all() else []),
    ]
    sections["gradient"] = [verdict for measure in measures for verdict in _evaluated(measure, exact)]
    if not atoms.pbc.any():
        say("vibrations")
        sections["vibrations"] = _evaluated(_vibration_verdicts, atoms, subject, reference)
    say(f"bath of {protocol.temperature:g} K")
    warm, stopped = _equilibrated(subject, atoms, folder / "equilibration", protocol)
    nve = None
    if warm is None:
        sections["dynamics"] = [Verdict("equilibration", None, "", None, False, stopped)]
    else:
        say("time steps")
        sections["integrator"] = _evaluated(_integrator_verdicts, subject, warm, protocol)
        say(f"{protocol.nve_ps:g} ps at constant energy")
        settings = _settings(protocol, "nve", None, protocol.nve_ps)
        _run(subject, warm, folder / "nve", settings)
        nve = check_trajectory(folder / "nve")
        sections["constant energy"] = list(nve.verdicts)
    say(f"{protocol.seeds} runs of {protocol.hot_ps:g} ps at {protocol.hot_temperature:g} K")
    sections["stability"], hot = _hot_verdicts(subject, atoms, folder / "hot", protocol, expected)
    if labelled is not None:
        say("errors")
        sections["errors"] = _evaluated(_error_verdicts, subject, labelled)
    certificate = Certificate(subject.name, atoms.get_chemical_formula(), sections, nve, hot, protocol)
    _write(certificate, folder)
    return certificate


def _expected(labelled: LabelledFrames, atoms: Atoms, say: Callable[[str], None]) -> Trajectory | None:
    """The data as a reference for hot runs, where they are of this molecule and whole."""
    try:
        return whole_molecules(labelled, atoms)
    except InputError as error:
        say(f"distances and dihedral angles are not compared with those of the data: {error}")
        return None


def _evaluated(measure: Measure, *arguments: Any) -> list[Verdict]:
    """What a check says; where the potential cannot be evaluated, that it failed."""
    try:
        found = measure(*arguments)
    except (InputError, CalculatorError) as error:
        name = measure.__name__.strip("_").removesuffix("_verdicts").removesuffix("_verdict")
        return [Verdict(name, None, "", None, False, f"could not be evaluated: {error}")]
    return found if isinstance(found, list) else [found]


def _worst(reports: Sequence[Report]) -> list[Verdict]:
    """Of each check of several runs the verdict of the one that does worst; without those that no run allows.

    What is compared with reference data is not judged: these may have been sampled at another temperature.
    """
    severity = {False: 0, True: 1, None: 2}
    found: dict[str, Verdict] = {}
    for verdict in (verdict for report in reports for verdict in report.verdicts):
        if "distribution" in verdict.name:
            verdict = replace(verdict, threshold=None, passed=None)
        rank = (severity[verdict.passed], -abs(verdict.value or 0.0))
        before = found.get(verdict.name)
        if before is None or rank < (severity[before.passed], -abs(before.value or 0.0)):
            found[verdict.name] = verdict
    told = [verdict for verdict in found.values() if verdict.value is not None or verdict.passed is not None]
    return [replace(verdict, name=f"hot runs: {verdict.name}") for verdict in told]


def certification(certificate: Certificate) -> Certification:
    """The part of it that a potential carries in its contract."""
    return Certification(
        date=date.today().isoformat(),
        package_version=version("ggnn-ff"),
        structure=certificate.structure,
        passed=certificate.passed,
        protocol=certificate.protocol.model_dump(mode="json"),
        figures=[
            CertifiedFigure(
                name=verdict.name,
                value=verdict.value,
                error=verdict.error,
                unit=verdict.unit,
                threshold=verdict.threshold,
                passed=verdict.passed,
            )
            for verdict in certificate.verdicts
            if verdict.value is not None or verdict.passed is not None
        ],
    )


def _settings(protocol: Protocol, ensemble: str, temperature: float | None, picoseconds: float) -> MDSettings:
    return make_settings(
        ensemble=ensemble,
        temperature=temperature,
        timestep=protocol.timestep,
        steps=max(10, round(1000.0 * picoseconds / protocol.timestep)),
        friction=0.02,
    )


def _run(subject: Subject, start: Atoms, folder: Path, settings: MDSettings) -> str | None:
    """Runs, or goes on; why it was stopped, or None."""
    try:  # also when it has come to its end before: another run is refused, and a shorter one goes on
        run_md(subject.used, start, folder, settings, progress=False)
    except UnstableDynamics as error:
        return str(error)
    return None


def _equilibrated(subject: Subject, atoms: Atoms, folder: Path, protocol: Protocol) -> tuple[Atoms | None, str]:
    """The last state of a bath, or None and why it was stopped."""
    settings = _settings(protocol, "langevin", protocol.temperature, protocol.equilibration_ps)
    stopped = _run(subject, atoms, folder, settings)
    if stopped is not None:
        return None, stopped
    warm = ase.io.read(folder / "trajectory.xyz", index=-1, format="extxyz")
    assert isinstance(warm, Atoms)
    warm.calc = None
    return warm, ""


def _vibration_verdicts(atoms: Atoms, subject: Subject, reference: Calculator | None) -> list[Verdict]:
    expected = None if reference is None else harmonic_frequencies(atoms, reference)
    return frequency_verdicts(harmonic_frequencies(atoms, subject.exact), expected)


def _integrator_verdicts(subject: Subject, warm: Atoms, protocol: Protocol) -> list[Verdict]:
    moving = warm.copy()
    moving.calc = subject.exact
    steps, duration = protocol.scaling_timesteps, 1000.0 * protocol.scaling_ps
    totals = total_energies(moving, steps, duration)
    scaling = time_step_scaling(steps, totals, duration, len(warm))
    return [*scaling_verdicts(scaling), convergence_verdict(steps, totals), reversibility_verdict(moving)]


def _hot_verdicts(
    subject: Subject, atoms: Atoms, folder: Path, protocol: Protocol, expected: Trajectory | None
) -> tuple[list[Verdict], list[Report]]:
    """Of several seeds: the time to collapse, and what their checks say."""
    settings = _settings(protocol, "langevin", protocol.hot_temperature, protocol.hot_ps)
    batched = settings.model_copy(update={"host": "batched"})
    try:
        replicas = run_replicas(subject.used, atoms, folder, batched, protocol.seeds, progress=False)
    except UnstableDynamics as error:
        return [Verdict("time to collapse", None, "ps", None, False, f"before the first frame: {error}")], []
    runs = [read_trajectory(replica.folder) for replica in replicas]
    reports = [check(run, reference=expected) for run in runs]
    return [collapse_verdict(collapse_times(runs)), *_worst(reports)], reports


def _error_verdicts(subject: Subject, frames: LabelledFrames) -> list[Verdict]:
    if isinstance(subject.used, LoadedPotential):
        evaluation = evaluate_frames(subject.used.module, frames, subject.used.contract.cutoff)
        energy, forces = evaluation.energy - frames.energy, evaluation.forces - frames.forces
    else:
        n = min(len(frames.energy), _MOST_LABELLED)
        energies, all_forces = [], []
        for number in range(n):
            one = frames.atoms(number)
            one.calc = subject.used
            energies.append(one.get_potential_energy())
            all_forces.append(one.get_forces())
        energy, forces = np.array(energies) - frames.energy[:n], np.concatenate(all_forces)
        forces = forces - frames.forces[: len(forces)]
        energy = energy - energy.mean()  # the zero of energy is another one
    text = f"mean absolute error on {len(energy)} frames of {frames.source}; not judged"
    return [
        Verdict("energy error", 1e3 * float(np.abs(energy).mean()), "meV", None, None, text),
        Verdict("force error", 1e3 * float(np.abs(forces).mean()), "meV/angstrom", None, None, text),
    ]


def _write(certificate: Certificate, folder: Path) -> None:
    content: dict[str, Any] = {
        "subject": certificate.subject,
        "structure": certificate.structure,
        "date": date.today().isoformat(),
        "package": f"ggnn-ff {version('ggnn-ff')}, ase {version('ase')}, Python {platform.python_version()}",
        "machine": platform.machine(),
        "protocol": certificate.protocol.model_dump(),
        "summary": certificate.summary,
        "passed": certificate.passed,
        "sections": {title: [asdict(verdict) for verdict in found] for title, found in certificate.sections.items()},
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    figures = {}
    if certificate.nve is not None:
        for title, draw in check_panels(certificate.nve).items():
            figure = new_figure(4.8, 3.1)
            draw(figure.subplots())
            figures[f"{title.capitalize()}. Run at constant energy."] = figure
    broken = next((report for report in certificate.hot if not report.passed), None)
    shown = broken or certificate.nve
    trajectory = None if shown is None else shown.trajectory
    highlight = None if broken is None else broken_bond(broken)
    title = f"Certificate of {Path(certificate.subject).name} for {certificate.structure}"
    page = render_html(title, certificate.summary, certificate.verdicts, figures, trajectory, highlight)
    for name, data in (("certificate.json", text), ("certificate.html", page)):
        write_atomically(folder / name, holding(data))
