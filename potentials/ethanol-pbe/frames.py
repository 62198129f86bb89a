"""The frames of PBE that ethanol-pbe was made from beside those of rMD17: which were labelled, and all in one file.

    uv run potentials/ethanol-pbe/frames.py choose    # runs/ethanol-pbe/chosen-*.xyz, to be labelled
    uv run potentials/ethanol-pbe/frames.py keep      # the labelled ones as frames.npz beside this file
    uv run potentials/ethanol-pbe/frames.py merge     # frames.npz and rMD17's as runs/ethanol-pbe/train.xyz

Run from the repository root; README.md says what comes before and between.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write

from ggnn_ff.data.frames import LabelledFrames
from ggnn_ff.data.readers import read_frames
from ggnn_ff.data.write import write_extxyz, write_md17_npz
from ggnn_ff.export import load_potential
from ggnn_ff.training.evaluation import evaluate_frames

HERE, RUNS = Path(__file__).parent, Path("runs/ethanol-pbe")
RMD17 = Path("../shared/data/rmd17_ethanol/train.xyz")
LEVEL = "PBE/def2-SVP"
DISAGREEING = (
    RUNS / "estimated",
    *(Path("benchmarks/comparison") / name / "training" for name in ("mace", "gotennet", "gemnet")),
)
EQUILIBRATION = 150  # frames at the beginning of each run, 1.5 ps
CANDIDATES, CHOSEN, PER_FILE = 8000, 3200, 100
ENERGY_OFFSET = -0.77e-3  # eV, rMD17 minus PySCF: mean of 40 training frames, which scatter by 0.08e-3; README.md


def choose() -> None:
    """Frames of the replicas, at random, those more often on which four potentials disagree about forces."""
    random = np.random.default_rng(0)
    paths = sorted(RUNS.glob("pool-*/*/trajectory.xyz"))
    pool = [atoms for path in paths for atoms in read(path, index=":")[EQUILIBRATION:]]
    candidates = [pool[k] for k in random.choice(len(pool), CANDIDATES, replace=False)]
    n_atoms = len(candidates[0])
    frames = LabelledFrames(
        numbers=np.concatenate([atoms.numbers for atoms in candidates]).astype(np.int64),
        positions=np.concatenate([atoms.positions for atoms in candidates]),
        forces=np.zeros((CANDIDATES * n_atoms, 3)),
        n_atoms=np.full(CANDIDATES, n_atoms),
        energy=np.zeros(CANDIDATES),
        cell=np.zeros((CANDIDATES, 3, 3)),
        pbc=np.zeros((CANDIDATES, 3), dtype=bool),
        level_of_theory=LEVEL,
    )
    forces = np.stack([evaluate_frames(load_potential(path).module, frames, 5.0).forces for path in DISAGREEING])
    squares = ((forces - forces.mean(axis=0)) ** 2).mean(axis=(0, 2)).reshape(CANDIDATES, n_atoms)
    disagreement = np.sqrt(squares.mean(axis=1))
    weights = disagreement / disagreement.sum()
    chosen = random.choice(CANDIDATES, CHOSEN, replace=False, p=weights)
    for start in range(0, CHOSEN, PER_FILE):
        few = [candidates[k] for k in chosen[start : start + PER_FILE]]
        bare = [Atoms(atoms.numbers, atoms.positions) for atoms in few]
        write(RUNS / f"chosen-{start // PER_FILE:02d}.xyz", bare)


def keep() -> None:
    """The labels as they are."""
    files = [read_frames(path) for path in sorted(RUNS.glob("labelled-*.xyz"))]
    write_md17_npz(HERE / "frames.npz", _together(files))


def merge() -> None:
    """With the energies of PySCF moved to those of rMD17's program."""
    ours = read_frames(HERE / "frames.npz", level_of_theory=LEVEL)
    ours = replace(ours, energy=ours.energy + ENERGY_OFFSET)
    write_extxyz(RUNS / "train.xyz", _together([read_frames(RMD17, level_of_theory=LEVEL), ours]))


def _together(files: list[LabelledFrames]) -> LabelledFrames:
    names = ("numbers", "positions", "forces", "n_atoms", "energy", "cell", "pbc")
    return replace(files[0], **{name: np.concatenate([getattr(one, name) for one in files]) for name in names})


if __name__ == "__main__":
    {"choose": choose, "keep": keep, "merge": merge}[sys.argv[1]]()
