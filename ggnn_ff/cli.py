"""The command `ggnn-ff`: parse, call, print."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ggnn_ff.console import console, print_contract, progress_bar
from ggnn_ff.errors import InputError, UnstableDynamics, tell, validated

if TYPE_CHECKING:
    from ggnn_ff.subjects import Subject

# What each command needs is imported inside it, so that help is quick and unused extras are not missed.

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

EXTRAS = {  # module that an extra brings -> its name
    "lightning": "train",
    "yaml": "train",
    "tensorboard": "train",
    "e3nn": "train",
    "openmm": "openmm",
    "openmmtorch": "openmm",
    "tblite": "sample",
    "pyscf": "dft",
    "matplotlib": "analysis",
    "mdtraj": "analysis",
    "tables": "analysis",
    "physical_validation": "analysis",
    "rdkit": "smiles",
    "torch_sim": "batched",
}


def main() -> None:
    """Runs the command; what a user can mend is printed without a traceback, with exit status 2."""
    try:
        app()
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f"this command needs {error.name}; install it with: pip install 'ggnn-ff[{extra}]'")
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        _fail(f"{where}{error.strerror or error}")
    except (InputError, UnstableDynamics, ImportError) as error:
        _fail(str(error))
    except SystemExit as end:
        if end.code != INTERRUPTED:  # what typer makes of Ctrl-C
            raise
        _fail("interrupted; run the same command again to go on", INTERRUPTED)


def _fail(message: str, status: int = 2) -> None:
    print(f"ggnn-ff: error: {message}", file=sys.stderr)
    sys.exit(status)


INTERRUPTED = 130  # exit status, as of shells
ENGINE = "what labels the frames: gfn2-xtb, or a density functional and a basis set such as PBE/def2-SVP"
Output = Annotated[Path, typer.Option("-o", "--output", help="where to write")]


@app.command()
def quickstart(
    output: Output = Path("quickstart"),
    seed: Annotated[int, typer.Option(help="of sampling, training and velocities")] = 0,
) -> None:
    """Sample ethanol with GFN2-xTB, train a PaiNN, export it, run it in ASE and OpenMM, and report."""
    from ggnn_ff.quickstart import run_quickstart

    run_quickstart(output, seed, console)


@app.command()
def sample(
    structure: Annotated[str, typer.Argument(help="name (ethanol), SMILES, or a file that ASE reads")],
    output: Output,
    frames: Annotated[int, typer.Option(help="how many")] = 1000,
    temperature: Annotated[float, typer.Option(help="K")] = 500.0,
    timestep: Annotated[float, typer.Option(help="fs")] = 0.5,
    stride: Annotated[int, typer.Option(help="steps between frames")] = 20,
    seed: Annotated[int, typer.Option(help="of the velocities and the random forces")] = 0,
    engine: Annotated[str, typer.Option(help=ENGINE)] = "gfn2-xtb",
) -> None:
    """Label frames of a molecule with a quantum-chemistry engine, for training; resumes after a kill."""
    from ggnn_ff.data.sample import sample as run

    with progress_bar("frames") as (progress, task):
        path = run(
            structure,
            output,
            frames=frames,
            temperature=temperature,
            timestep=timestep,
            stride=stride,
            seed=seed,
            engine=engine,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console.print(f"{frames} frames in {path} and {path.with_suffix('.xyz')}")


@app.command()
def label(
    frames: Annotated[list[Path], typer.Argument(help="files with structures, such as trajectories")],
    output: Output,
    engine: Annotated[str, typer.Option(help=ENGINE)] = "gfn2-xtb",
    correction: Annotated[
        list[str] | None,
        typer.Option(help="potential trained on differences to the engine, to be added; the mean of several"),
    ] = None,
    difference: Annotated[bool, typer.Option("--difference", help="the files' own labels minus the engine's")] = False,
    level_of_theory: Annotated[
        str | None, typer.Option(help="of the files' own labels, where they do not say, with --difference")
    ] = None,
    energy_unit: Annotated[str | None, typer.Option(help="of the files' own labels, with --difference or npz")] = None,
    length_unit: Annotated[str | None, typer.Option(help="of the files, with --difference or npz")] = None,
) -> None:
    """Label frames anew: by an engine, corrected by potentials, or with the difference to it; resumes after a kill."""
    from ggnn_ff.label import label as run

    with progress_bar("frames") as (progress, task):
        labelled = run(
            frames,
            output,
            engine=engine,
            corrections=correction or [],
            difference=difference,
            level_of_theory=level_of_theory,
            energy_unit=energy_unit,
            length_unit=length_unit,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console.print(f"{len(labelled)} frames of {labelled.level_of_theory} in {output}", soft_wrap=True)


@app.command()
def train(config: Annotated[Path, typer.Argument(help="YAML file; see examples/")]) -> None:
    """Train a potential; run again to go on with an interrupted training."""
    from ggnn_ff.training.config import read_config
    from ggnn_ff.training.fit import fit

    folder = fit(read_config(config))
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one of several processes; the first one prints
        return
    print_contract(folder)
    console.print(f"potential in {folder}; export it with: ggnn-ff export {folder} -o potential.pt", soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="folder of a training")],
    output: Output,
) -> None:
    """Write the TorchScript file of a trained potential, checked against the eager one."""
    from ggnn_ff.export import export_torchscript

    export_torchscript(run, output)
    console.print(f"wrote {output}")


@app.command()
def info(potential: Annotated[str, typer.Argument(help="shipped name, file or folder")]) -> None:
    """Show the contract of a potential."""
    print_contract(potential)


@app.command()
def potentials() -> None:
    """List the potentials that ship with the package."""
    from ggnn_ff.contract import parse_contract
    from ggnn_ff.export import CONTRACT, shipped_potentials

    table = Table("name", "elements", "architecture", "level of theory", "force MAE (meV/angstrom)")
    for name, folder in shipped_potentials().items():
        contract = parse_contract((folder / CONTRACT).read_bytes(), folder / CONTRACT)
        errors = contract.test_errors
        force = f"{errors.forces_mae_mev_per_angstrom:.2f}" if errors is not None else "not measured"
        table.add_row(name, " ".join(contract.elements), contract.architecture, contract.level_of_theory, force)
    console.print(table)


@app.command()
def evaluate(
    potential: Annotated[str, typer.Argument(help="shipped name, file or folder")],
    data: Annotated[Path, typer.Argument(help="labelled frames: MD17 npz, extxyz, ...")],
    energy_unit: Annotated[str | None, typer.Option(help="of the file, if not its custom")] = None,
    length_unit: Annotated[str | None, typer.Option(help="of the file, if not its custom")] = None,
) -> None:
    """Measure the errors of a potential on labelled frames; prints JSON."""
    from ggnn_ff.contract import check_elements
    from ggnn_ff.data.frames import UNKNOWN_LEVEL
    from ggnn_ff.data.readers import read_frames
    from ggnn_ff.export import load_potential
    from ggnn_ff.training.evaluation import evaluate_frames

    loaded = load_potential(potential)
    frames = read_frames(data, energy_unit=energy_unit, length_unit=length_unit)
    check_elements(loaded.contract, frames.numbers)
    contract = loaded.contract
    trained_on = {contract.training_data.sha256}
    if contract.started_from is not None:
        trained_on.add(contract.started_from.training_data.sha256)
    if frames.sha256 in trained_on:
        tell(f"{data} is a file that {potential} was trained on: these are no errors on other frames")
    levels = frames.level_of_theory, loaded.contract.level_of_theory
    if UNKNOWN_LEVEL not in levels and levels[0] != levels[1]:
        tell(f"{data} is of {levels[0]}, {potential} of {levels[1]}: this is what the methods differ by as well")
    errors = evaluate_frames(loaded.module, frames, loaded.contract.cutoff).errors(frames)
    print(errors.model_dump_json(indent=1))


@app.command("compile")
def compile_command(
    potential: Annotated[str, typer.Argument(help="shipped name, file or folder")],
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64 [default: as trained]")] = None,
) -> None:
    """Compile a potential to machine code for this machine, once; all hosts then use it.

    They would compile it themselves when they first need it; this does it beforehand.
    """
    from ggnn_ff.cache import cache_folder
    from ggnn_ff.compiled import compile_potential
    from ggnn_ff.export import load_potential

    compile_potential(load_potential(potential, device=device, dtype=dtype))
    console.print(f"compiled; kept in {cache_folder()}", soft_wrap=True, markup=False)


@app.command()
def md(
    potential: Annotated[str, typer.Argument(help="shipped name, file or folder")],
    structure: Annotated[str, typer.Argument(help="name (ethanol), SMILES, or a file that ASE reads")],
    output: Output,
    ensemble: Annotated[str, typer.Option(help="nve or langevin; nose-hoover with --replicas")] = "nve",
    temperature: Annotated[
        float | None,
        typer.Option(help="K, of the first velocities and the bath [default: the structure's momenta]"),
    ] = None,
    timestep: Annotated[float, typer.Option(help="fs")] = 0.5,
    steps: Annotated[int, typer.Option(help="how many")] = 10_000,
    host: Annotated[str, typer.Option(help="ase or openmm")] = "ase",
    backend: Annotated[str, typer.Option(help="of the OpenMM force: auto, torch or python")] = "auto",
    friction: Annotated[float, typer.Option(help="1/fs, of the Langevin bath")] = 0.01,
    seed: Annotated[int, typer.Option(help="of velocities and random forces")] = 0,
    on_alarm: Annotated[
        str,
        typer.Option(help="warn or stop, when temperature or energy jump or the training data is left behind"),
    ] = "warn",
    log_every: Annotated[int, typer.Option(help="steps between rows of energies.csv")] = 10,
    frame_every: Annotated[int, typer.Option(help="steps between frames")] = 100,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64 [default: as trained]")] = None,
    device: Annotated[str, typer.Option(help="of the ASE host: cpu or cuda")] = "cpu",
    replicas: Annotated[
        int | None, typer.Option(help="run so many at once, with seeds that count up from --seed")
    ] = None,
    compile_potential: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="run machine code [default: where there is a C++ compiler]"),
    ] = None,
) -> None:
    """Run molecular dynamics; run again to go on after a kill, or with more steps.

    A broken bond or a number that is not finite stops a run. The frames that led to an alarm are kept, for labelling.
    """
    from ggnn_ff.data.structures import find_structure
    from ggnn_ff.dynamics.replicas import run_replicas
    from ggnn_ff.dynamics.run import run_md
    from ggnn_ff.dynamics.settings import make_settings
    from ggnn_ff.export import load_potential

    if host == "openmm" and device != "cpu":
        raise InputError(f"`device` must be cpu for host 'openmm', got {device!r}; leave it out, or use host 'ase'")
    if replicas is not None and (host != "ase" or device != "cpu"):
        raise InputError("`replicas` must run on the CPU without a host, got one; leave out --host and --device")
    settings = make_settings(
        ensemble=ensemble,
        temperature=temperature,
        timestep=timestep,
        steps=steps,
        host=host if replicas is None else "batched",
        backend=backend,
        friction=friction,
        seed=seed,
        on_alarm=on_alarm,
        log_every=log_every,
        frame_every=frame_every,
    )
    loaded = load_potential(potential, device=device, dtype=dtype)
    if replicas is not None:
        results = run_replicas(loaded, find_structure(structure), output, settings, replicas, compile=compile_potential)
        stopped = [result for result in results if result.stopped is not None]
        for one in stopped:
            console.print(f"{one.folder.name}: {one.stopped}", soft_wrap=True, markup=False)
        console.print(f"{replicas} replicas in {output}, {len(stopped)} of them stopped", soft_wrap=True)
        sys.exit(2 if stopped else 0)
    result = run_md(loaded, find_structure(structure), output, settings, compile=compile_potential)
    console.print(
        f"{result.steps} steps in {result.folder}; check them with: ggnn-ff check {result.folder}", soft_wrap=True
    )


@app.command()
def check(
    trajectory: Annotated[Path, typer.Argument(help="run folder, also of OpenMM, or a file that ASE or mdtraj reads")],
    reference: Annotated[Path | None, typer.Option(help="trajectory by the reference method")] = None,
    topology: Annotated[Path | None, typer.Option(help="for files without one, such as DCD")] = None,
    frame_interval: Annotated[float | None, typer.Option(help="fs between frames, if the file does not say")] = None,
    ensemble: Annotated[str | None, typer.Option(help="nve, langevin or nose-hoover, if the file does not say")] = None,
    temperature: Annotated[float | None, typer.Option(help="of the bath, K, if the file does not say")] = None,
    degrees_of_freedom: Annotated[
        int | None, typer.Option(help="that share the kinetic energy, where there are constraints")
    ] = None,
    drift_threshold: Annotated[float, typer.Option(help="meV/atom/ps")] = 0.5,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="folder for check.json, .png and .html [default: the run folder, or FILE-check]"
        ),
    ] = None,
) -> None:
    """Check energy conservation and structure of a trajectory; exit status 1 when a verdict fails.

    When no verdict fails, but the energy drift of an NVE run could not be judged, the check is inconclusive: status 0.
    """
    from ggnn_ff.stability.report import check_trajectory
    from ggnn_ff.stability.show import report_table, write_report

    report = check_trajectory(
        trajectory,
        reference=reference,
        topology=topology,
        frame_interval_fs=frame_interval,
        ensemble=ensemble,
        temperature=temperature,
        degrees_of_freedom=degrees_of_freedom,
        drift_threshold=drift_threshold,
    )
    folder = output or (trajectory if trajectory.is_dir() else trajectory.with_name(f"{trajectory.name}-check"))
    console.print(report_table(report))
    console.print(report.summary, soft_wrap=True)
    write_report(report, folder)  # after the table, since the picture needs matplotlib
    console.print(f"details in {folder / 'check.html'}, check.json and check.png", soft_wrap=True, markup=False)
    if not report.passed:
        sys.exit(1)


@app.command()
def certify(
    output: Output,
    structure: Annotated[str, typer.Option(help="name (ethanol), SMILES, or a file that ASE reads")],
    potential: Annotated[str | None, typer.Argument(help="shipped name, file or folder")] = None,
    calculator: Annotated[
        str | None,
        typer.Option(help="instead of a potential: gfn2-xtb, PBE/def2-SVP, or mace:FILE from people you trust"),
    ] = None,
    reference_data: Annotated[Path | None, typer.Option(help="labelled frames for errors")] = None,
    reference_calculator: Annotated[
        str | None, typer.Option(help="what labelled the training data, for frequencies; named as for --calculator")
    ] = None,
    nve: Annotated[float, typer.Option(help="ps at constant energy")] = 20.0,
    hot: Annotated[float, typer.Option(help="ps of each hot run")] = 100.0,
    hot_temperature: Annotated[float, typer.Option(help="K")] = 500.0,
    seeds: Annotated[int | None, typer.Option(help="hot runs [default: 3, and 5 for the protocol]")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="md17-stability: nothing but 300 ps at 500 K, as in arXiv 2210.07237")
    ] = None,
) -> None:
    """Put a potential through all checks and write the certificate into it; exit status 1 unless it passes.

    It passes when no check fails and the energy drift could be judged.

    Symmetry, forces as a gradient, vibrations of molecules, time steps, energy conservation and stability. Run again to
    go on after a kill.
    """
    from ggnn_ff.certify import Protocol, certification
    from ggnn_ff.certify import certify as run
    from ggnn_ff.data.structures import find_structure
    from ggnn_ff.export import write_certification
    from ggnn_ff.md17_stability import NAME, SEEDS
    from ggnn_ff.subjects import calculator_subject, potential_subject

    if (potential is None) == (calculator is None):
        raise InputError("`potential` or `calculator` must be given, one of the two")
    if protocol is not None:
        given = {"nve": (nve, 20.0), "hot": (hot, 100.0), "hot_temperature": (hot_temperature, 500.0)}
        for name, (value, default) in {**given, "reference_calculator": (reference_calculator, None)}.items():
            if value != default:
                raise InputError(
                    f"`{name}` must be left out with `protocol`, which says what is run and for how long, got {value}"
                )
        if protocol != NAME:
            raise InputError(f"`protocol` must be {NAME}, got {protocol!r}; leave it out for the whole battery")
    subject = potential_subject(potential) if potential is not None else calculator_subject(calculator or "")
    if protocol is not None:
        _md17_stability(subject, structure, reference_data, output, SEEDS if seeds is None else seeds)
        return
    asked = {"nve": nve, "hot": hot, "hot_temperature": hot_temperature, "seeds": 3 if seeds is None else seeds}
    battery = validated(Protocol, asked)
    reference = None if reference_calculator is None else calculator_subject(reference_calculator).exact
    found = run(subject, find_structure(structure), output, battery, reference_data, reference, console.print)
    table = Table("check", "value", "threshold", "unit", "verdict")
    outcomes = {True: "[green]pass[/green]", False: "[bold red]FAIL[/bold red]", None: "-"}
    for title, verdicts in found.sections.items():
        table.add_section()
        table.add_row(f"[bold]{title}[/bold]")
        for verdict in verdicts:
            threshold = "-" if verdict.threshold is None else f"{verdict.threshold:g}"
            table.add_row(verdict.name, verdict.text, threshold, verdict.unit, outcomes[verdict.passed])
    console.print(table)
    console.print(found.summary, soft_wrap=True)
    console.print(f"details in {output / 'certificate.html'} and certificate.json", soft_wrap=True, markup=False)
    if potential is not None:
        files = " and ".join(map(str, write_certification(potential, certification(found))))
        console.print(f"certificate written into {files}", soft_wrap=True, markup=False)
    if not found.passed:
        sys.exit(1)


def _md17_stability(subject: "Subject", structure: str, reference_data: Path | None, output: Path, seeds: int) -> None:
    """Runs it and prints its row of the table."""
    from ggnn_ff.data.structures import find_structure
    from ggnn_ff.files import holding, write_atomically
    from ggnn_ff.md17_stability import NAME, md17_stability, stability_table

    if reference_data is None:
        raise InputError(f"`reference_data` must be given for protocol {NAME}: frames of the reference method at 500 K")
    row = md17_stability(subject.used, find_structure(structure), reference_data, output, subject.name, seeds=seeds)
    write_atomically(output / "stability.json", holding(json.dumps(asdict(row), indent=1) + "\n"))
    print(stability_table([row]))
    console.print(f"runs and stability.json in {output}", soft_wrap=True, markup=False)


@app.command()
def compare(
    data: Annotated[Path, typer.Option(help="labelled frames to train and validate on")],
    test: Annotated[Path, typer.Option(help="labelled frames to measure errors on")],
    output: Output,
    models: Annotated[str, typer.Option(help="all, or names with commas between: painn,mace")] = "all",
    budget: Annotated[str, typer.Option(help="time of training of each: 15min, 90s, 2h")] = "15min",
    valid: Annotated[int, typer.Option(help="how many frames of the data validate; the others train")] = 50,
    preset: Annotated[str, typer.Option(help="small, default or large hyper-parameters")] = "small",
    learning_rate: Annotated[
        float | None, typer.Option(help="the first one [default: the one chosen for each architecture]")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="frames")] = 5,
    seed: Annotated[int, typer.Option(help="of split, weights, batches and velocities")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads of training [default: torch's choice]")] = None,
    compile_training: Annotated[
        bool, typer.Option("--compile/--no-compile", help="compile the loss; needs frames of one molecule")
    ] = False,
) -> None:
    """Train architectures for the same time on the same data, measure them, and write table and pictures.

    For each: errors, time per step, largest jumps of energy and forces, energy conservation, stability when hot. Run
    again to go on after a kill; exit status 1 when an architecture could not be trained or measured.
    """
    from ggnn_ff.comparison.run import compare as run
    from ggnn_ff.comparison.settings import Settings, parse_budget, parse_models

    asked = {
        "data": data,
        "test": test,
        "budget_minutes": parse_budget(budget),
        "valid": valid,
        "preset": preset,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seed": seed,
        "threads": threads,
        "compile": compile_training,
    }
    settings = validated(Settings, asked)
    failures = run(settings, parse_models(models), output, console)
    print((output / "comparison.md").read_text(encoding="utf8"))
    console.print(f"raw figures and pictures in {output}", soft_wrap=True, markup=False)
    if failures:
        sys.exit(1)
