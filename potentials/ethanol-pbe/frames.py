"""The frames of PBE that ethanol-pbe was made from beside those of rMD17: which were labelled, and all in one file.

    uv run potentials/ethanol-pbe/frames.py conformers    # runs/ethanol-pbe/gauche.xyz and trans.xyz, to begin with
    uv run potentials/ethanol-pbe/frames.py choose 500    # runs/ethanol-pbe/chosen-*.xyz, to be labelled; then 650
    uv run potentials/ethanol-pbe/frames.py keep          # the labelled ones as frames.npz beside this file
    uv run potentials/ethanol-pbe/frames.py distort       # runs/ethanol-pbe/distorted.xyz, to be labelled as well
    uv run potentials/ethanol-pbe/frames.py merge         # all and rMD17's as runs/ethanol-pbe/train.xyz and valid.xyz

Run from the repository root; README.md says what comes before and between.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from scipy.sparse.csgraph import connected_components

from ggnn_ff.bonds import bonds
from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.splits import random_split
from ggnn_ff.data.write import write_extxyz, write_md17_npz
from ggnn_ff.export import load_potential
from ggnn_ff.stability.smoothness import CLOSEST, random_lines
from ggnn_ff.training.evaluation import evaluate_frames

HERE, RUNS = Path(__file__).parent, Path("runs/ethanol-pbe")
RMD17 = Path("../shared/data/rmd17_ethanol/train.xyz")
LEVEL = "PBE/def2-SVP"
ENERGY_OFFSET = -0.77e-3  # eV, rMD17 minus PySCF: mean of 40 training frames, which scatter by 0.08e-3; README.md
OF_DYNAMICS, DISTORTED, VALID = 2600, 200, 100  # frames, the first two of frames.npz
COMPARED = {name: Path("benchmarks/comparison") / name / "training" for name in ("mace", "gotennet", "gemnet")}


@dataclass(frozen=True)
class Round:
    """Which frames of which replicas are labelled."""

    pools: str  # trajectories
    equilibration: int  # frames at the beginning of each that are left out
    candidates: int
    chosen: int
    disagreeing: tuple[Path, ...]  # potentials
    per_file: int
    first_file: int
    seed: int


ROUNDS = {
    "500": Round("pool-[gt]*", 150, 8000, 3200, (RUNS / "estimated", *COMPARED.values()), 100, 0, 0),
    "650": Round(
        "pool-hot",
        100,
        4000,
        1000,
        (RUNS / "estimated", RUNS / "first", COMPARED["mace"], COMPARED["gotennet"]),
        50,
        16,
        1,
    ),
}


def conformers() -> None:
    """The training frames of rMD17 whose dihedral angle H-O-C-C is nearest to that of each conformer."""
    frames = read(RMD17, index=":")
    angles = np.array([atoms.get_dihedral(8, 2, 0, 1) for atoms in frames])
    angles = np.minimum(angles, 360.0 - angles)  # of either hand
    for name, angle in {"gauche": 62.0, "trans": 178.0}.items():
        write(RUNS / f"{name}.xyz", frames[int(np.abs(angles - angle).argmin())])


def choose(settings: Round) -> None:
    """Frames of the replicas, at random, those more often on which four potentials disagree about forces."""
    random = np.random.default_rng(settings.seed)
    paths = sorted(RUNS.glob(f"{settings.pools}/*/trajectory.xyz"))
    pool = [atoms for path in paths for atoms in read(path, index=":")[settings.equilibration :]]
    candidates = [pool[k] for k in random.choice(len(pool), settings.candidates, replace=False)]
    n_atoms, n_frames = len(candidates[0]), len(candidates)
    frames = LabelledFrames(
        numbers=np.concatenate([atoms.numbers for atoms in candidates]).astype(np.int64),
        positions=np.concatenate([atoms.positions for atoms in candidates]),
        forces=np.zeros((n_frames * n_atoms, 3)),
        n_atoms=np.full(n_frames, n_atoms),
        energy=np.zeros(n_frames),
        cell=np.zeros((n_frames, 3, 3)),
        pbc=np.zeros((n_frames, 3), dtype=bool),
        level_of_theory=LEVEL,
    )
    potentials = [load_potential(path).module for path in settings.disagreeing]
    forces = np.stack([evaluate_frames(potential, frames, 5.0).forces for potential in potentials])
    squares = ((forces - forces.mean(axis=0)) ** 2).mean(axis=(0, 2)).reshape(n_frames, n_atoms)
    disagreement = np.sqrt(squares.mean(axis=1))
    chosen = random.choice(n_frames, settings.chosen, replace=False, p=disagreement / disagreement.sum())
    for k, start in enumerate(range(0, settings.chosen, settings.per_file), settings.first_file):
        few = [candidates[j] for j in chosen[start : start + settings.per_file]]
        write(RUNS / f"chosen-{k:02d}.xyz", [Atoms(atoms.numbers, atoms.positions) for atoms in few])


def keep() -> None:
    """The labels as they are: those of dynamics, then the distorted ones."""
    files = [*sorted(RUNS.glob("labelled-*.xyz")), RUNS / "distorted-labelled.xyz"]
    together = RUNS / "labelled.xyz"  # by themselves, forces of distorted frames look like those of another unit
    together.write_text("".join(path.read_text(encoding="utf8") for path in files if path.exists()), encoding="utf8")
    write_md17_npz(HERE / "frames.npz", read_frames(together))


def distort() -> None:
    """Frames in which atoms are closer than dynamics brings them; a potential that saw none may explode there.

    Half of them are displaced at random, in the others one bond is shortened.
    """
    random, (frames, _) = np.random.default_rng(2), _of_dynamics()
    distorted = []
    for number, k in enumerate(random.choice(len(frames), DISTORTED, replace=False)):
        atoms = frames.atoms(k)
        if number % 2:
            atoms.positions = random_lines(atoms.positions, 1, random.uniform(0.05, 0.15), seed=number)[0, 0]
        else:
            _shorten(atoms, random)
        distorted.append(Atoms(atoms.numbers, atoms.positions))
    write(RUNS / "distorted.xyz", distorted)


def _shorten(atoms: Atoms, random: np.random.Generator) -> None:
    """Moves what is on one side of a bond towards the other side."""
    pairs = bonds(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    first, second = pairs[random.integers(len(pairs))]
    linked = np.zeros((len(atoms), len(atoms)), dtype=bool)
    for a, b in pairs:
        if {a, b} != {first, second}:
            linked[a, b] = True
    moved = connected_components(linked, directed=False)[1]
    vector = atoms.positions[first] - atoms.positions[second]
    atoms.positions[moved == moved[second]] += (1.0 - random.uniform(CLOSEST, 0.95)) * vector


def merge() -> None:
    """Training and validation frames, the latter of dynamics only; what was validated once is not trained on later."""
    train, valid = _of_dynamics()
    ours = _ours()
    distorted = ours.select(np.arange(OF_DYNAMICS, len(ours)))  # none, before there are any
    write_extxyz(RUNS / "train.xyz", _together([train, distorted]))
    write_extxyz(RUNS / "valid.xyz", valid)


def _of_dynamics() -> tuple[LabelledFrames, LabelledFrames]:
    """Those of rMD17 and ours that train, and that validate."""
    frames = _together([read_frames(RMD17, level_of_theory=LEVEL), _ours().select(np.arange(OF_DYNAMICS))])
    train, valid, _ = random_split(len(frames), len(frames) - VALID, VALID, 0, seed=0)
    return frames.select(train), frames.select(valid)


def _ours() -> LabelledFrames:
    """With the energies of PySCF moved to those of rMD17's program."""
    frames = read_frames(HERE / "frames.npz", level_of_theory=LEVEL)
    return replace(frames, energy=frames.energy + ENERGY_OFFSET)


def _together(files: list[LabelledFrames]) -> LabelledFrames:
    names = ("numbers", "positions", "forces", "n_atoms", "energy", "cell", "pbc")
    return replace(files[0], **{name: np.concatenate([getattr(one, name) for one in files]) for name in names})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["conformers"]:
            conformers()
        case ["choose", temperature]:
            choose(ROUNDS[temperature])
        case ["keep"]:
            keep()
        case ["distort"]:
            distort()
        case ["merge"]:
            merge()
        case _:
            sys.exit(__doc__)
