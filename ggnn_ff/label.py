"""Frames labelled anew: by an engine, by an engine and potentials that correct it, or with the difference to an engine.

The difference of two methods is smoother than either, so that few frames of the better one teach it well. Many
frames, labelled by the cheap method and a potential of the difference, then teach a potential that needs neither.
"""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed

from ggnn_ff.contract import check_elements
from ggnn_ff.data.engines import check_electrons, engine_calculator, engine_level, engine_version, one_thread
from ggnn_ff.data.frames import MINUS, LabelledFrames
from ggnn_ff.data.journal import Journal, Record
from ggnn_ff.data.readers import read_frames, read_structures
from ggnn_ff.data.write import write_extxyz
from ggnn_ff.errors import InputError, tell
from ggnn_ff.export import load_potential
from ggnn_ff.hosts.ase import GGNNCalculator


def label(
    paths: Sequence[Path],
    output: Path,
    *,
    engine: str = "gfn2-xtb",
    corrections: Sequence[str | Path] = (),
    difference: bool = False,
    level_of_theory: str | None = None,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledFrames:
    """Writes frames with new labels as extxyz; a call that was killed goes on when it is repeated.

    Frames that the engine fails for, where its cycles do not converge, are left out, and named on stderr.

    Args:
        paths: files with structures, such as trajectories, or npz as of MD17; their labels are not looked at unless
            `difference`.
        output: extxyz file; while it is made, its labels are in `<output>.journal`.
        engine: "gfn2-xtb", or "FUNCTIONAL/BASIS".
        corrections: potentials trained on differences to this engine; the mean of what they say is added.
        difference: the labels in the files minus the engine's, instead.
        level_of_theory: of the labels in the files, where they do not say; for `difference` only.
        energy_unit: of the labels in the files, as for `read_frames`; for `difference`, and for npz.
        length_unit: of the files, as for `read_frames`; for `difference`, and for npz.
        progress: called with the number of frames done and of all, after each.

    Returns:
        The frames. Their level of theory is the engine's; with corrections "<theirs>, estimated from <the engine's>";
        with a difference "<that of the files> minus <the engine's>".

    Raises:
        InputError: files that cannot be read or have no labels where these are needed, an output that exists,
            corrections of something else, arguments that exclude each other, a charge or spin that atoms do not have,
            an engine that fails before it has done any frame, or a journal of another call.
    """
    only = {"level_of_theory": level_of_theory, "energy_unit": energy_unit, "length_unit": length_unit}
    _check_arguments(paths, corrections, difference, only)
    journal_path = _journal_path(output)
    old = _one_level([read_frames(path, **only) for path in paths]) if difference else []
    structures = (
        _structures(old) if difference else [atoms for path in paths for atoms in _read(path, energy_unit, length_unit)]
    )
    adding, level = _adding(corrections, engine)
    settings: Record = {
        "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths],
        "engine": f"{engine} ({engine_version(engine)})",
        "corrections": [calculator.potential.contract.identity for calculator in adding],
        "difference": difference,
        **({} if length_unit is None else {"length_unit": length_unit}),  # of what the engine is given
    }
    _check_structures(structures, adding)
    if difference:  # labelled frames do not say what a comment line says of the charge
        files = [path for path in paths if not zipfile.is_zipfile(path)]
        _check_structures([atoms for path in files for atoms in read_structures(path)], adding)
    records = _records(structures, Journal(journal_path, settings), engine, adding, progress)
    done = [k for k, record in enumerate(records) if "energy" in record]
    labelled = _frames([structures[k] for k in done], [records[k] for k in done], level)
    if difference:
        labelled = _minus(old, np.array(done), labelled)
    write_extxyz(output, labelled)
    journal_path.unlink()
    _tell_failed(records, level)
    return labelled


def _journal_path(output: Path) -> Path:
    """Where labels are while they are made; raises InputError where `output` cannot be written."""
    if output.suffix not in (".xyz", ".extxyz"):
        raise InputError(f"`output` must end in .xyz or .extxyz, which is what is written, got {output}")
    path = Path(f"{output}.journal")
    if output.exists() and not path.exists():
        raise InputError(f"`output`: {output} exists and would be overwritten; choose another output or move it away")
    return path


def _records(
    structures: list[Atoms],
    journal: Journal,
    engine: str,
    adding: Sequence[GGNNCalculator],
    progress: Callable[[int, int], None] | None,
) -> list[Record]:
    """For each structure its energy and forces, or why it `failed`; those that the journal lacks are calculated."""
    try:
        with one_thread():
            for k in range(len(journal.records), len(structures)):
                try:
                    journal.append(_labels(structures[k], k, engine, adding))
                except CalculationFailed as error:
                    if not any("energy" in record for record in journal.records):
                        raise InputError(
                            f"`paths`: {engine_level(engine)} failed for frame {k} of all ({error}) before it had done "
                            "any; look at its atoms, charge and spin, or take it out of its file"
                        ) from error
                    journal.append({"failed": str(error)})
                if progress is not None:
                    progress(k + 1, len(structures))
    finally:
        journal.close()
    return journal.records


def _tell_failed(records: list[Record], level: str) -> None:
    failed = {k: record["failed"] for k, record in enumerate(records) if "failed" in record}
    if failed:
        first = next(iter(failed))
        tell(
            f"left out {len(failed)} of {len(records)} frames, for which {level} failed: {', '.join(map(str, failed))} "
            f"(frame {first}: {failed[first]})"
        )


def _check_arguments(
    paths: Sequence[Path], corrections: Sequence[str | Path], difference: bool, only: dict[str, str | None]
) -> None:
    if difference and corrections:
        raise InputError(
            "`corrections` must be absent with `difference`, which is taken from the engine alone; drop one"
        )
    if not paths:
        raise InputError("`paths` must name at least one file, got none")
    have_units = all(zipfile.is_zipfile(path) for path in paths)  # others are read without their labels, in angstrom
    for name, value in only.items():
        if value is not None and not difference and (name == "level_of_theory" or not have_units):
            raise InputError(f"`{name}` is of the labels in the files, which are used only with `difference`; drop it")


def _check_structures(structures: Sequence[Atoms], adding: Sequence[GGNNCalculator]) -> None:
    for k, atoms in enumerate(structures):
        try:
            check_electrons(atoms)
        except InputError as error:
            raise InputError(f"`paths`, frame {k} of all: {error}") from error
        for calculator in adding:
            check_elements(calculator.potential.contract, atoms.numbers)


def _one_level(files: list[LabelledFrames]) -> list[LabelledFrames]:
    levels = sorted({frames.level_of_theory for frames in files})
    if len(levels) > 1:
        raise InputError(f"`paths` must be of one level of theory, got {', '.join(levels)}; label them one by one")
    return files


def _read(path: Path, energy_unit: str | None, length_unit: str | None) -> list[Atoms]:
    if zipfile.is_zipfile(path):
        return _structures([read_frames(path, energy_unit=energy_unit, length_unit=length_unit)])
    return read_structures(path)


def _structures(files: list[LabelledFrames]) -> list[Atoms]:
    return [frames.atoms(k) for frames in files for k in range(len(frames))]


def _frames(structures: list[Atoms], records: list[Record], level: str) -> LabelledFrames:
    return LabelledFrames(
        numbers=np.concatenate([atoms.numbers for atoms in structures]).astype(np.int64),
        positions=np.concatenate([atoms.positions for atoms in structures]),
        forces=np.concatenate([np.array(record["forces"]) for record in records]),
        n_atoms=np.array([len(atoms) for atoms in structures], dtype=np.int64),
        energy=np.array([record["energy"] for record in records]),
        cell=np.stack([atoms.cell.array for atoms in structures]),
        pbc=np.stack([atoms.pbc for atoms in structures]),
        level_of_theory=level,
    ).with_electrons_of(structures)


def _minus(old: list[LabelledFrames], kept: np.ndarray, new: LabelledFrames) -> LabelledFrames:
    """The labels of those of the `old` frames that are `kept`, minus those of the `new` ones."""
    energies = np.concatenate([frames.energy for frames in old])[kept]
    forces = [frames.forces[frames.rows(k)] for frames in old for k in range(len(frames))]
    return replace(
        new,
        energy=energies - new.energy,
        forces=np.concatenate([forces[k] for k in kept]) - new.forces,
        level_of_theory=f"{old[0].level_of_theory}{MINUS}{new.level_of_theory}",
    )


def _adding(corrections: Sequence[str | Path], engine: str) -> tuple[list[GGNNCalculator], str]:
    """Calculators of the corrections, and the level of theory of the sum."""
    calculators = [GGNNCalculator(load_potential(one)) for one in corrections]
    suffix = f"{MINUS}{engine_level(engine)}"
    levels = [calculator.potential.contract.level_of_theory for calculator in calculators]
    for name, level in zip(corrections, levels, strict=True):
        if not level.endswith(suffix) or level != levels[0]:
            raise InputError(
                f"`corrections` must all be trained on differences of one method to the engine ('...{suffix}', as "
                f"`difference` writes them), got {name} of level of theory '{level}'"
            )
    name = engine_level(engine)
    return calculators, f"{levels[0].removesuffix(suffix)}, estimated from {name}" if levels else name


def _labels(atoms: Atoms, index: int, engine: str, adding: Sequence[GGNNCalculator]) -> Record:
    """Energy, eV, and forces (N, 3), eV/angstrom, of the engine and the mean of the corrections."""
    one = atoms.copy()
    one.set_constraint()  # which would take forces away
    one.calc = engine_calculator(engine)  # a fresh one: labels do not depend on the frame before
    try:
        energy, forces = one.get_potential_energy(), one.get_forces()
    except InputError as error:
        raise InputError(f"`paths`, frame {index} of all: {error}") from error
    for calculator in adding:
        one.calc = calculator
        energy = energy + one.get_potential_energy() / len(adding)
        forces = forces + one.get_forces() / len(adding)
    return {"energy": float(energy), "forces": forces.tolist()}
