"""Labelled frames of a molecule from molecular dynamics with a quantum-chemistry engine."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.md.langevin import Langevin
from ase.optimize import BFGS
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ggnn_ff.bonds import LONGEST_DEVIATION, bond_lengths, bond_name, bonds
from ggnn_ff.data.engines import check_electrons, engine_calculator, engine_level, engine_version, one_thread
from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.journal import Journal, Record, check_same_settings
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.structures import find_structure
from ggnn_ff.data.write import write_extxyz, write_md17_npz
from ggnn_ff.errors import InputError

_RELAXED = 0.02  # eV/angstrom, largest force in the relaxed structure
_RELAX_STEPS = 1000
_EQUILIBRATION_PART = 100  # steps between records before the first frame: what a kill costs, at most


def sample(
    structure: str | Path | Atoms,
    output: str | Path,
    *,
    frames: int = 1000,
    temperature: float = 500.0,
    timestep: float = 0.5,
    stride: int = 20,
    equilibration: int = 2000,
    friction: float = 0.02,
    seed: int = 0,
    engine: str = "gfn2-xtb",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Samples a molecule with Langevin dynamics and writes its labelled frames.

    The structure is relaxed, heated for `equilibration` steps, and then labelled every `stride` steps. The
    frames go to `<output>.npz` (MD17 layout, kcal/mol) and `<output>.xyz` (extxyz, eV); while they are made,
    to the journal `<output>.journal`. A run that was killed continues from there when called again with the
    same arguments, and ends with the same files as an uninterrupted one. A finished output with the same
    arguments is left as it is.

    Args:
        structure: molecule as for `structures.find_structure`: "ethanol", SMILES, a file, or Atoms.
        output: path of the results, with or without `.npz`.
        frames: how many.
        temperature: K.
        timestep: fs.
        stride: steps between frames; each step is one calculation.
        equilibration: steps before the first frame.
        friction: 1/fs.
        seed: of the velocities and the random forces.
        engine: "gfn2-xtb", or "FUNCTIONAL/BASIS".
        progress: called with the number of frames done and of all, after each frame.

    Returns:
        Path of the npz file.

    Raises:
        InputError: an argument cannot be used; the output was made with other arguments; or the dynamics
            failed or the molecule fell apart, in which case the frames until then are in
            `<output>.partial.npz` and `.xyz`.
    """
    counted = {"frames": frames, "stride": stride}
    _check_positive(counted | {"temperature": temperature, "timestep": timestep, "friction": friction})
    if equilibration < 0 or seed < 0:
        raise InputError(f"`equilibration` and `seed` must not be negative, got {equilibration} and {seed}")
    atoms = find_structure(structure)
    _check_molecule(atoms)
    settings: Record = {
        "structure": f"{atoms.get_chemical_formula()} {_fingerprint(atoms)}",
        "engine": f"{engine} ({engine_version(engine)})",
        "frames": frames,
        "temperature": float(temperature),
        "timestep": float(timestep),
        "stride": stride,
        "equilibration": equilibration,
        "friction": float(friction),
        "seed": seed,
    }
    stem = str(output).removesuffix(".npz")
    npz, journal_path = Path(stem + ".npz"), Path(stem + ".journal")
    if not journal_path.exists() and _is_finished(npz, settings):
        return npz
    with one_thread():
        journal = Journal(journal_path, settings)
        try:
            _run(atoms, journal, settings, engine, progress)
        except _StoppedError as stopped:
            done = len(_of_frames(journal))
            kept = ""
            if done > 0:
                _write(stem + ".partial", atoms, journal, settings, engine)
                kept = f" The {done} frames until then are in {stem}.partial.npz and .xyz."
            raise InputError(
                f"{stopped}.{kept} Lower the temperature ({temperature} K) or the time step ({timestep} fs), "
                f"and delete {journal_path} to start over"
            ) from stopped
        finally:
            journal.close()
    _write(stem, atoms, journal, settings, engine)
    journal_path.unlink()
    return npz


class _StoppedError(Exception):
    """The dynamics cannot go on."""


def _run(
    atoms: Atoms,
    journal: Journal,
    settings: Record,
    engine: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fills the journal: the relaxed structure first, then states of the equilibration, then a record of each frame.

    A fresh calculator follows each record: it labels a frame, and does the steps to the next record. So neither
    labels nor dynamics depend on anything that is not in the journal.
    """
    if not journal.records:
        journal.append({"relaxed": _relaxed(atoms, engine).tolist()})
    relaxed, last = np.array(journal.records[0]["relaxed"]), journal.records[-1]
    dynamics = _dynamics(atoms, last, settings, engine)

    def record(steps: int, index: int, equilibrated: int | None = None) -> None:
        """Takes `steps`, and records the state: of frame `index` with its labels, or on the way to it."""
        try:
            dynamics.run(steps)
            _check_whole(atoms, relaxed, index)
            atoms.calc = engine_calculator(engine)
            if equilibrated is None:
                what = {"energy": float(atoms.get_potential_energy()), "forces": atoms.get_forces().tolist()}
            else:
                what = {"equilibrated": equilibrated}
        except CalculationFailed as error:
            raise _StoppedError(f"{engine_level(engine)} failed on the way to frame {index} ({error})") from error
        state = {"positions": atoms.positions.tolist(), "momenta": atoms.get_momenta().tolist()}
        journal.append({**what, **state, "generator": dynamics.rng.bit_generator.state})

    n_frames, equilibration = settings["frames"], settings["equilibration"]
    if not _of_frames(journal):
        for done in range(last.get("equilibrated", 0), equilibration, _EQUILIBRATION_PART):
            steps = min(_EQUILIBRATION_PART, equilibration - done)
            record(steps, 0, equilibrated=done + steps)
    for index in range(len(_of_frames(journal)), n_frames):
        record(settings["stride"] if index else 0, index)
        if progress is not None:
            progress(index + 1, n_frames)


def _dynamics(atoms: Atoms, last: Record, settings: Record, engine: str) -> Langevin:
    """Dynamics of `atoms` from the `last` record on: a state, or the relaxed structure, which gets velocities."""
    generator = np.random.default_rng(settings["seed"])
    if "positions" in last:
        atoms.set_positions(last["positions"])
        atoms.set_momenta(last["momenta"])
        generator.bit_generator.state = last["generator"]
    else:
        atoms.set_positions(last["relaxed"])
        spread = np.sqrt(atoms.get_masses() * units.kB * settings["temperature"])
        atoms.set_momenta(generator.normal(size=(len(atoms), 3)) * spread[:, None])
    atoms.calc = engine_calculator(engine)
    return Langevin(
        atoms,
        timestep=settings["timestep"] * units.fs,
        temperature_K=settings["temperature"],
        friction=settings["friction"] / units.fs,
        fixcm=False,
        rng=generator,
    )


def _of_frames(journal: Journal) -> list[Record]:
    return [record for record in journal.records if "energy" in record]


def _relaxed(atoms: Atoms, engine: str) -> np.ndarray:
    """(N, 3) positions of the nearest energy minimum, angstrom."""
    atoms = atoms.copy()
    atoms.calc = engine_calculator(engine)
    try:
        converged = BFGS(atoms, logfile=None).run(fmax=_RELAXED, steps=_RELAX_STEPS)
    except CalculationFailed as error:
        raise _StoppedError(f"{engine_level(engine)} failed while relaxing the structure ({error})") from error
    if not converged:
        raise _StoppedError(
            f"the structure must relax to forces below {_RELAXED} eV/angstrom, got "
            f"{np.abs(atoms.get_forces()).max():.3g} after {_RELAX_STEPS} steps; give a better structure"
        )
    return atoms.positions


def _check_whole(atoms: Atoms, relaxed: np.ndarray, index: int) -> None:
    """Raises if the molecule has fallen into more parts than the relaxed one.

    A bond that breaks while another forms (a proton that moves) is a rearrangement, not a falling apart.
    """
    cell, pbc = atoms.cell.array, atoms.pbc
    pairs = bonds(atoms.numbers, relaxed, cell, pbc)
    stretch = bond_lengths(atoms.positions, pairs, cell, pbc) - bond_lengths(relaxed, pairs, cell, pbc)
    if not np.isfinite(atoms.positions).all():
        raise _StoppedError(f"the positions became infinite on the way to frame {index}")
    held = np.concatenate([pairs[stretch <= LONGEST_DEVIATION], bonds(atoms.numbers, atoms.positions, cell, pbc)])
    if _n_parts(held, len(atoms)) > _n_parts(pairs, len(atoms)):
        worst = int(stretch.argmax())
        raise _StoppedError(
            f"the molecule fell apart on the way to frame {index}: the bond "
            f"{bond_name(atoms.numbers, pairs[worst])} is {stretch[worst]:.2f} angstrom longer than in the "
            "relaxed structure"
        )


def _n_parts(pairs: np.ndarray, n_atoms: int) -> int:
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_atoms, n_atoms))
    return int(connected_components(graph, directed=False, return_labels=False))


def _write(stem: str, atoms: Atoms, journal: Journal, settings: Record, engine: str) -> None:
    """Writes the frames of a journal as npz and extxyz."""
    records = _of_frames(journal)
    n_frames, n_atoms = len(records), len(atoms)
    labelled = LabelledFrames(
        numbers=np.tile(atoms.numbers, n_frames).astype(np.int64),
        positions=np.array([record["positions"] for record in records]).reshape(-1, 3),
        forces=np.array([record["forces"] for record in records]).reshape(-1, 3),
        n_atoms=np.full(n_frames, n_atoms, dtype=np.int64),
        energy=np.array([record["energy"] for record in records]),
        cell=np.zeros((n_frames, 3, 3)),
        pbc=np.zeros((n_frames, 3), dtype=bool),
        level_of_theory=engine_level(engine),
    ).with_electrons_of([atoms] * n_frames)
    write_extxyz(Path(stem + ".xyz"), labelled)
    write_md17_npz(Path(stem + ".npz"), labelled, settings=json.dumps(settings))


def _is_finished(npz: Path, settings: Record) -> bool:
    """Whether there is an output, made with these settings; rewrites a missing extxyz twin.

    Raises:
        InputError: it was made otherwise.
    """
    twin = npz.with_suffix(".xyz")
    if not npz.exists():
        if twin.exists():
            raise InputError(f"`output`: {twin} exists and would be overwritten; choose another output or move it away")
        return False
    finished = read_frames(npz)
    with np.load(npz, allow_pickle=False) as archive:
        text = str(archive["settings"]) if "settings" in archive.files else ""
    if not text:
        raise InputError(f"`output`: {npz} exists and was not made by sampling; choose another output or delete it")
    check_same_settings(json.loads(text), settings, npz)
    if not twin.exists():
        write_extxyz(twin, finished)
    return True


def _check_molecule(atoms: Atoms) -> None:
    if len(atoms) < 2:
        raise InputError(f"`structure` must have at least two atoms to move, got {len(atoms)}")
    if atoms.pbc.any():
        raise InputError(
            f"`structure` must be a molecule, got one periodic in {atoms.pbc.tolist()}; set pbc to False if "
            "the cell is only a box around it"
        )
    if atoms.constraints:
        raise InputError(
            "`structure` must have no constraints, which take forces out of the labels; remove them with "
            "atoms.set_constraint()"
        )
    check_electrons(atoms)


def _check_positive(values: dict[str, float]) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"`{name}` must be positive, got {value}")


def _fingerprint(atoms: Atoms) -> str:
    """Short hash of elements, positions (to 1e-4 angstrom), charges and magnetic moments."""
    digest = hashlib.sha256(atoms.numbers.astype(np.int64).tobytes())
    centred = atoms.positions - atoms.positions.mean(axis=0)
    for values in (centred, atoms.get_initial_charges(), atoms.get_initial_magnetic_moments()):
        digest.update((np.round(values, 4) + 0.0).tobytes())
    return digest.hexdigest()[:12]
