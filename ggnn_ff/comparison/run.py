"""A comparison in a folder: each architecture trained, measured and entered into the table, one after the other."""

import json
import math
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from rich.console import Console

from ggnn_ff.comparison.measure import measure_dynamics, measure_jumps
from ggnn_ff.comparison.plots import plot_accuracy_speed, plot_conservation_accuracy, plot_curves
from ggnn_ff.comparison.row import CurvePoint, Row, Speed
from ggnn_ff.comparison.settings import CANDIDATES, Settings, Sizes
from ggnn_ff.comparison.speed import measure_speed
from ggnn_ff.comparison.table import markdown
from ggnn_ff.compiled import compile_potential
from ggnn_ff.errors import InputError
from ggnn_ff.export import TORCHSCRIPT, export_torchscript, load_potential
from ggnn_ff.files import holding, write_atomically
from ggnn_ff.stability.plots import save_figure
from ggnn_ff.training.config import TrainingConfig
from ggnn_ff.training.curve import LearningCurve, read_learning_curve
from ggnn_ff.training.data_files import hash_files, load_split
from ggnn_ff.training.fit import fit
from ggnn_ff.training.surroundings import torch_state_kept

SETTINGS, ROW, SPEED = "settings.json", "row.json", "speed.json"
_SPEEDS = TypeAdapter(list[Speed])


def compare(
    settings: Settings,
    models: Sequence[str],
    folder: Path,
    console: Console,
    sizes: Sizes = Sizes(),  # noqa: B008 (immutable)
) -> dict[str, str]:
    """Trains and measures each of `models`; what was done before a kill is not done again.

    Args:
        settings: the same for all.
        models: names in `CANDIDATES`. Further ones may join later, in the same folder, where tables have all rows.
        folder: receives a folder for each architecture with its training, `potential.pt`, simulations, `speed.json`
            and `row.json`, and for all `comparison.json`, `comparison.md`, `accuracy_speed.png`,
            `conservation_accuracy.png` and `learning_curves.png`, anew whenever a row is finished. Where `speed.json`
            has been deleted, times are taken again, and nothing else.
        console: is told what goes on.
        sizes: how much is measured.

    Returns:
        Reasons why architectures have no row, by name; the others have one.

    Raises:
        InputError: data that cannot be used, or a folder with a comparison of other settings or data.
    """
    load_split(settings.training(models[0], folder).data)  # errors of the data concern all
    _claim(settings, sizes, folder)
    failures: dict[str, str] = {}
    before = _failures(folder)
    for number, model in enumerate(models, start=1):
        where = folder / model
        if not _is_complete(where):
            console.print(f"[{number}/{len(models)}] {model}", markup=False)
            try:
                _make_row(settings, model, where, console, sizes)
            except (InputError, RuntimeError, ArithmeticError) as error:  # of this architecture; the others go on
                failures[model] = f"{type(error).__name__}: {error}"
                console.print(f"{model} failed: {error}", markup=False, soft_wrap=True)
        others = {name: why for name, why in before.items() if name not in models and not _is_complete(folder / name)}
        _write_results(settings, others | failures, folder, sizes)
    return failures


def _claim(settings: Settings, sizes: Sizes, folder: Path) -> None:
    """Makes sure that what the folder holds was made with these settings and data."""
    hashes = hash_files(settings.training("painn", folder).data)
    now = {**settings.model_dump(mode="json"), **hashes, "sizes": sizes.model_dump()}
    path = folder / SETTINGS
    if not path.exists():
        _write(path, json.dumps(now, indent=1))
        return
    try:
        before = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged; choose another folder, or delete it") from error
    changed = ", ".join(f"`{k}` was {before.get(k)} and is now {now[k]}" for k in now if before.get(k) != now[k])
    if changed:
        raise InputError(f"`output` {folder} holds another comparison: {changed}; choose another folder, or delete it")


def _make_row(settings: Settings, model: str, folder: Path, console: Console, sizes: Sizes) -> None:
    """Writes what is not there yet of `ROW` and `SPEED`."""

    def say(text: str) -> None:
        console.print(f"  {text}", markup=False)

    config = settings.training(model, folder / "training")
    if not (folder / ROW).exists():
        say(f"training for {settings.budget_minutes:g} minutes")
        fit(config, progress=console.is_terminal)
    exported = folder / TORCHSCRIPT  # the same file after a kill, for the simulations belong to it
    potential = load_potential(exported) if exported.exists() else export_torchscript(config.output, exported)
    errors = potential.contract.test_errors
    assert errors is not None  # there is a test file
    say(f"force MAE {errors.forces_mae_mev_per_angstrom:.2f} meV/angstrom")
    if settings.compile:
        say("compiling the potential")
        potential = compile_potential(potential)
    with torch_state_kept(settings.seed, 1):
        if not (folder / SPEED).exists():
            say("time per step")
            speed = measure_speed(potential, sizes.evaluations, sizes.seconds)
            _write(folder / SPEED, _SPEEDS.dump_json(speed, indent=1).decode())
        if (folder / ROW).exists():
            return
        start = load_split(config.data).test.atoms(0)
        say("jumps")
        jumps = measure_jumps(load_potential(config.output, dtype="float64"), start, sizes)
        nve, hot = measure_dynamics(potential, start, folder, sizes, settings.seed, say)
    eager = load_potential(config.output).module
    curve = read_learning_curve(config.output)
    row = Row(
        model=model,
        hyperparameters=potential.contract.hyperparameters,
        n_parameters=sum(parameter.numel() for parameter in eager.parameters()),
        learning_rate=config.optimizer.learning_rate,
        device=_device(config),
        epochs=int(curve.epochs[-1]) + 1,
        errors=errors,
        speed=_SPEEDS.validate_json((folder / SPEED).read_bytes()),
        jumps=jumps,
        nve=nve,
        hot=hot,
        curve=_points(curve),
    )
    _write(folder / ROW, row.model_dump_json(indent=1, exclude={"speed"}))


def _device(config: TrainingConfig) -> str:
    """What Lightning chooses for `accelerator: auto`."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"CPU, threads: {config.run.threads or torch.get_num_threads()}"


def _points(curve: LearningCurve) -> list[CurvePoint]:
    energy, forces = (curve.panels[panel]["validation"] for panel in ("energy MAE (meV)", "force MAE (meV/Å)"))
    return [
        CurvePoint(
            minutes=float(curve.minutes[k]),
            epoch=int(epoch),
            energy_mae_mev=float(energy[k]),
            forces_mae_mev_per_angstrom=float(forces[k]),
        )
        for k, epoch in enumerate(curve.epochs)
        if math.isfinite(curve.minutes[k])  # was validated
    ]


def _write_results(settings: Settings, failures: dict[str, str], folder: Path, sizes: Sizes) -> None:
    """Tables and pictures of all rows in the folder."""
    rows = [_read_row(folder / model) for model in CANDIDATES if _is_complete(folder / model)]
    machine = {
        "date": date.today().isoformat(),
        "machine": platform.platform(),
        "processors": os.cpu_count(),
        "torch": torch.__version__,
    }
    content: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "sizes": sizes.model_dump(),
        **machine,
        "rows": [row.model_dump() for row in rows],
        "failures": failures,
    }
    _write(folder / "comparison.json", json.dumps(content, indent=1, allow_nan=False))
    form = "compiled" if settings.compile else "TorchScript"
    notes = [
        f"{settings.data.name}, {settings.test.name}; {settings.budget_minutes:g} minutes of training each (preset "
        f"{settings.preset}, seed {settings.seed}, batches of {settings.batch_size}); {machine['date']}, "
        f"{rows[0].device if rows else 'no row yet'}, torch {torch.__version__}. Dynamics at {sizes.timestep:g} fs in "
        f"ASE, float32, {form}, one thread: {sizes.nve_ps:g} ps at constant energy; ms per step with the neighbour "
        "list, in brackets per bare evaluation."
    ]
    _write(folder / "comparison.md", markdown(rows, failures, sizes, notes))
    if rows:
        save_figure(plot_accuracy_speed(rows), folder / "accuracy_speed.png")
        save_figure(plot_conservation_accuracy(rows), folder / "conservation_accuracy.png")
        save_figure(plot_curves(rows), folder / "learning_curves.png")


def _failures(folder: Path) -> dict[str, str]:
    """Of earlier calls; none where there is no readable file of results."""
    try:
        return dict(json.loads((folder / "comparison.json").read_text(encoding="utf8"))["failures"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_complete(folder: Path) -> bool:
    return (folder / ROW).exists() and (folder / SPEED).exists()


def _read_row(folder: Path) -> Row:
    try:
        row = json.loads((folder / ROW).read_bytes())
        return Row.model_validate({**row, "speed": json.loads((folder / SPEED).read_bytes())})
    except (ValueError, TypeError) as error:  # also ValidationError
        raise InputError(
            f"{folder / ROW} or {SPEED} is damaged or of another version; delete it to measure anew ({error})"
        ) from error


def _write(path: Path, text: str) -> None:
    write_atomically(path, holding(text if text.endswith("\n") else text + "\n"))
