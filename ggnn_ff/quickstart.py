"""The whole way once: label, train, export, run in each host, check, report."""

import json
import os
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import ase
import numpy as np
import openmm
import torch
from ase import Atoms
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ggnn_ff.data.engines import engine_calculator, engine_level, one_thread
from ggnn_ff.data.sample import sample
from ggnn_ff.dynamics.run import MDResult, run_md
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.export import TORCHSCRIPT, export_torchscript, load_potential
from ggnn_ff.files import holding, write_atomically
from ggnn_ff.hosts.parity import HostAnswer, answers_of_all_hosts
from ggnn_ff.stability.plots import (
    plot_distance_distribution,
    plot_energies,
    plot_force_parity,
    plot_learning_curve,
    save_figure,
)
from ggnn_ff.stability.report import Report, check_trajectory
from ggnn_ff.training.config import TrainingConfig, make_config
from ggnn_ff.training.curve import read_learning_curve
from ggnn_ff.training.data_files import load_split
from ggnn_ff.training.evaluation import evaluate_frames
from ggnn_ff.training.fit import fit

FRAMES, TRAIN, VALID, TEST = 1000, 850, 50, 100
EPOCHS = 60
MD_STEPS, MD_TEMPERATURE, TIMESTEP = 8000, 300.0, 0.5
REFERENCE = "GFN2-xTB in ASE"


def run_quickstart(folder: Path, seed: int, console: Console) -> None:
    """Does it all in `folder`; run again to go on where it was interrupted.

    Args:
        folder: receives data, training run, `potential.pt`, trajectories, plots and `report.json`.
        seed: of sampling, split, training and velocities.
        console: prints progress and the table.
    """
    began = time.perf_counter()
    torch.set_num_threads(1)  # for nine atoms a second thread costs more than it gives
    console.print("[1/4] labelling ethanol with GFN2-xTB, Langevin dynamics at 500 K")
    data = _sample(folder / "ethanol.npz", seed, console)
    console.print("[2/4] training a PaiNN")
    config = quickstart_config(data, folder / "training", seed)
    run = fit(config)
    console.print("[3/4] exporting it to TorchScript")
    potential = folder / TORCHSCRIPT
    loaded = export_torchscript(run, potential)
    test = load_split(config.data).test
    evaluation = evaluate_frames(loaded.module, test, config.model.cutoff)
    console.print("[4/4] dynamics at constant energy from one start in ASE, in OpenMM, and by GFN2-xTB")
    start = test.atoms(0)
    answers = answers_of_all_hosts(run, potential, start, "float64")
    results, reports = _dynamics(folder / "md", potential, start, seed)

    figures = folder / "plots"
    curve = read_learning_curve(run)
    save_figure(plot_learning_curve(curve.epochs, curve.panels), figures / "learning_curve.png")
    parity = plot_force_parity(evaluation.reference_forces, evaluation.forces, test.numbers)
    save_figure(parity, figures / "force_parity.png")
    energies = {name: report.trajectory.energies for name, report in reports.items()}
    save_figure(plot_energies(energies, len(start)), figures / "energies.png")  # type: ignore[arg-type]
    reference = reports.pop(REFERENCE)
    distributions = {name: report.distribution for name, report in reports.items()}
    h_of_r = plot_distance_distribution(reference.distances, distributions, reference.distribution)
    save_figure(h_of_r, figures / "distance_distribution.png")
    reports[REFERENCE] = reference

    errors = evaluation.errors(test).model_dump()
    report = {
        "date": date.today().isoformat(),
        "seconds": round(time.perf_counter() - began, 1),
        "seed": seed,
        "machine": _machine(),
        "level_of_theory": engine_level("gfn2-xtb"),
        "test_errors": errors,
        "same_frame_float64": {
            name: {"energy_ev": a.energy, "largest_force_difference_ev_per_angstrom": _difference(a, answers["eager"])}
            for name, a in answers.items()
        },
        "dynamics": {
            name: {"milliseconds_per_step": results[name].milliseconds_per_step, **reports[name].to_dict()}
            for name in results
        },
    }
    text = json.dumps(report, indent=1, allow_nan=False)
    write_atomically(folder / "report.json", holding(text + "\n"))
    console.print(_table(errors, answers, results, reports))
    console.print(f"{report['seconds']} s in all; potential, trajectories, report.json and plots are in {folder}")
    console.print(f"use it: atoms.calc = GGNNCalculator('{potential}')", soft_wrap=True, markup=False)


def quickstart_config(data: Path, output: Path, seed: int) -> TrainingConfig:
    """The training of the quickstart: small enough for two cores and two minutes."""
    return make_config(
        {
            "output": output,
            "data": {"train": data, "n_train": TRAIN, "n_valid": VALID, "n_test": TEST, "seed": seed},
            "model": {"name": "painn", "cutoff": 5.0, "hyperparameters": {"n_features": 32, "n_radial": 8}},
            "optimizer": {
                "epochs": EPOCHS,
                "batch_size": 10,
                "learning_rate": 2e-3,
                "gradient_clip": 1.0,
                "schedule": "cosine",
                "validate_every": 2,
            },
            "run": {"seed": seed, "accelerator": "cpu", "threads": 1},
        }
    )


def _sample(output: Path, seed: int, console: Console) -> Path:
    with Progress(BarColumn(), MofNCompleteColumn(), TextColumn("frames"), console=console) as bar:
        task = bar.add_task("", total=FRAMES)
        path = sample(
            "ethanol",
            output,
            frames=FRAMES,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done),
        )
        bar.update(task, completed=FRAMES)
    return path


def _dynamics(folder: Path, potential: Path, start: Atoms, seed: int) -> tuple[dict[str, MDResult], dict[str, Report]]:
    """The same start in both hosts and with the reference, and what the check says of each."""
    settings = {"steps": MD_STEPS, "temperature": MD_TEMPERATURE, "timestep": TIMESTEP, "seed": seed, "frame_every": 10}
    loaded = load_potential(potential)
    results = {
        "ASE": run_md(loaded, start, folder / "ase", make_settings(host="ase", **settings)),
        "OpenMM": run_md(loaded, start, folder / "openmm", make_settings(host="openmm", backend="torch", **settings)),
    }
    with one_thread():
        reference = engine_calculator("gfn2-xtb")
        results[REFERENCE] = run_md(reference, start, folder / "gfn2-xtb", make_settings(host="ase", **settings))
    reports = {
        name: check_trajectory(result.folder, reference=results[REFERENCE].folder) for name, result in results.items()
    }
    return results, reports


def _difference(answer: HostAnswer, other: HostAnswer) -> float:
    return float(np.abs(answer.forces - other.forces).max())


def _table(
    errors: dict[str, Any],
    answers: dict[str, HostAnswer],
    results: dict[str, MDResult],
    reports: dict[str, Report],
) -> Table:
    table = Table("what", "where", "value", "unit", title="ethanol, GFN2-xTB: PaiNN against its reference")
    table.add_row("energy MAE", f"{errors['n_frames']} test frames", f"{errors['energy_mae_mev']:.2f}", "meV")
    table.add_row("force MAE", "", f"{errors['forces_mae_mev_per_angstrom']:.2f}", "meV/angstrom", end_section=True)
    for name, answer in answers.items():
        table.add_row("energy of one frame, float64", name, f"{answer.energy:.9f}", "eV")
    table.rows[-1].end_section = True
    for quantity in ("energy drift", "energy fluctuation"):
        for name, report in reports.items():
            verdict = next(v for v in report.verdicts if v.name == quantity)
            table.add_row(quantity, name, verdict.text, verdict.unit)
        table.rows[-1].end_section = True
    for name, result in results.items():
        duration = result.milliseconds_per_step
        table.add_row("time per step", name, "-" if duration is None else f"{duration:.2f}", "ms")
    return table


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ase": ase.__version__,
        "openmm": openmm.__version__,
    }
