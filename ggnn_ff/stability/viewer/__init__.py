"""A trajectory in 3D, as part of an HTML page: its section, its script and its data."""

import base64
import json
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

import numpy as np
from ase.data import chemical_symbols

from ggnn_ff.bonds import bond_name, bonds
from ggnn_ff.errors import InputError
from ggnn_ff.stability.frames import Trajectory

MOST_FRAMES = 200
"""Frames that are shown: 12 seconds, chosen here."""

MOST_ATOMS = 5_000
"""Larger systems are not shown: they are slow to draw, and their atoms cannot be told apart."""

_MOST_PLACES = 90_000  # atoms times frames; 12 bytes each, 16 in base64, so that the page stays below 3 MB


@dataclass(frozen=True)
class Highlight:
    """A pair of atoms to point at, from one frame on.

    Attributes:
        frame: index in the trajectory, from 0.
        atoms: two indices, from 0.
        text: what happened, in a sentence.
    """

    frame: int
    atoms: tuple[int, int]
    text: str


def read_text(name: str) -> str:
    """A file of this folder."""
    return (files(__name__) / name).read_text(encoding="utf-8")


def viewer_section(trajectory: Trajectory, highlight: Highlight | None) -> str:
    """The section of the page: where the frames are drawn, and the controls.

    Raises:
        InputError: if `highlight` is outside of the trajectory.
    """
    n_frames, n_atoms = trajectory.positions.shape[:2]
    rows = _rows(trajectory, highlight)
    start, jump = 0, ""
    description = f"3D view of {n_atoms} atoms through {len(rows)} frames."
    if highlight is not None:
        if not 0 <= highlight.frame < n_frames or not all(0 <= atom < n_atoms for atom in highlight.atoms):
            raise InputError(
                f"`highlight` must be within {n_frames} frames of {n_atoms} atoms, got frame {highlight.frame} and "
                f"atoms {highlight.atoms}; both count from 0"
            )
        start = int(np.searchsorted(rows, highlight.frame))
        jump = '<button type="button" data-jump>Go to the marked bond</button>'
        description += f" {highlight.text}"
    hint = "" if len(rows) == n_frames else f"{len(rows)} of {n_frames} frames are shown. "
    return Template(read_text("viewer.html")).substitute(
        description=escape(description), jump=jump, last=len(rows) - 1, start=start, hint=hint
    )


def viewer_script(trajectory: Trajectory, highlight: Highlight | None) -> str:
    """The script elements that fill the section: the frames, 3Dmol.js and the player."""
    frames = json.dumps(_frames(trajectory, highlight), allow_nan=False)  # numbers and symbols of elements only
    return (
        f'<script type="application/json" id="frames">{frames}</script>\n'
        f"<script>\n{read_text('3Dmol-min.js')}\n</script>\n<script>\n{read_text('player.js')}</script>"
    )


def _rows(trajectory: Trajectory, highlight: Highlight | None) -> np.ndarray:
    """Indices of the frames that are shown: evenly spread, and the one that is pointed at."""
    n_shown = min(len(trajectory), MOST_FRAMES, max(1, _MOST_PLACES // len(trajectory.numbers)))
    rows = np.linspace(0, len(trajectory) - 1, n_shown).round().astype(np.int64)
    return np.unique(rows if highlight is None else [*rows, highlight.frame])


def _frames(trajectory: Trajectory, highlight: Highlight | None) -> dict[str, object]:
    """What player.js reads: positions (rows, N, 3) as little-endian float32 in base64, angstrom.

    Bonds are those of the first frame that do not cross the cell. The centre of mass of a molecule stays where it is,
    and the frame that is seen first is turned into its principal axes, so that few atoms hide others.
    """
    rows = _rows(trajectory, highlight)
    numbers, cell, periodic = trajectory.numbers, trajectory.cell[0], bool(np.any(trajectory.pbc))
    positions, pointed, start = trajectory.positions[rows], None, 0
    if highlight is not None:
        start = int(np.searchsorted(rows, highlight.frame))
        name = bond_name(numbers, np.asarray(highlight.atoms))
        pointed = {"row": start, "atoms": [int(atom) for atom in highlight.atoms], "name": name}
    if not periodic:
        centres = np.einsum("a,tak->tk", trajectory.masses / trajectory.masses.sum(), positions)
        positions = positions - centres[:, None]
        axes = np.linalg.eigh(positions[start].T @ positions[start])[1][:, ::-1]  # columns, the longest first
        positions = positions @ (axes * np.linalg.det(axes))  # a rotation, never a mirror image
    return {
        "symbols": [chemical_symbols[number] for number in numbers],
        "bonds": _direct_bonds(numbers, trajectory.positions[0]),
        "frames": rows.tolist(),
        "times_ps": None if trajectory.times_fs is None else (trajectory.times_fs[rows] / 1000.0).tolist(),
        "cell": cell.tolist() if periodic else None,
        "highlight": pointed,
        "positions": base64.b64encode(positions.astype("<f4").tobytes()).decode(),
    }


def _direct_bonds(numbers: np.ndarray, positions: np.ndarray) -> list[list[int]]:
    """Pairs of bonded atoms, without those that cross the cell."""
    return bonds(numbers, positions, np.zeros((3, 3)), np.zeros(3, dtype=bool)).tolist()
