"""Trajectories in the formats of other simulation programs, read through mdtraj."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np

from ggnn_ff import units
from ggnn_ff.errors import InputError
from ggnn_ff.stability.blocks import Rows, chunk_length
from ggnn_ff.stability.frames import Energies, Trajectory

MDTRAJ_SUFFIXES = (".dcd", ".xtc", ".trr", ".nc", ".netcdf", ".h5", ".hdf5")
HDF5_SUFFIXES = (".h5", ".hdf5")
"""mdtraj's own format, written by its HDF5Reporter for OpenMM; carries topology, velocities and energies."""
TOPOLOGY_SUFFIXES = (".pdb", ".gro", ".prmtop", ".parm7", ".psf", ".mol2", ".cif", ".h5", ".hdf5")
"""Topology files left to mdtraj; any other is given to ASE."""

_FS_PER_PS = 1000.0
_MOST_COMPARED = 1000  # frames, to see whether velocities and kinetic energies belong together
_SAME_ENERGY = 0.05  # share by which they may differ; integrators that leap differ by less


def read_mdtraj(path: Path, topology: Path | None) -> Trajectory:
    """Reads a DCD, XTC, TRR, NetCDF or HDF5 trajectory.

    Args:
        path: the trajectory. The times of a DCD file are not read: its header is written in too many ways.
        topology: file that names the atoms; only HDF5 files carry their own.

    Returns:
        The trajectory, with momenta and energies if it is an HDF5 file that has them.

    Raises:
        InputError: if mdtraj is not installed, the topology is missing or does not fit, or the file is
            damaged.
    """
    mdtraj = _import_mdtraj(path)
    try:
        if path.suffix.lower() in HDF5_SUFFIXES:
            with mdtraj.formats.HDF5TrajectoryFile(str(path)) as file:
                return _convert(file.topology, _hdf5_blocks(mdtraj, file), path)
        atoms = _topology(mdtraj, path, topology)
        n_frames = chunk_length(3 * atoms.n_atoms)
        return _convert(atoms, _blocks(mdtraj.iterload(str(path), chunk=n_frames, top=atoms), path), path)
    except InputError:
        raise
    except Exception as error:  # each of mdtraj's readers fails in its own way
        raise InputError(
            f"{path} cannot be read by mdtraj ({type(error).__name__}: {error}); check that it is whole "
            "and that `topology` has the same atoms"
        ) from error


def _import_mdtraj(path: Path) -> ModuleType:
    try:
        import mdtraj

        if path.suffix.lower() in HDF5_SUFFIXES:
            import tables  # noqa: F401  mdtraj imports PyTables late, with a message of its own
    except ImportError as error:
        package = "PyTables" if error.name == "tables" else "mdtraj"
        command = "tables" if error.name == "tables" else "'ggnn-ff[analysis]'"
        raise InputError(
            f"reading {path.suffix} files needs {package}, which is not installed: pip install {command}"
        ) from error
    return mdtraj


def _topology(mdtraj: ModuleType, path: Path, topology_path: Path | None) -> Any:
    if topology_path is None:
        raise InputError(
            f"`topology` is needed: {path} has coordinates but does not name its atoms. Give a PDB or any "
            "structure file with the same atoms in the same order"
        )
    if not topology_path.is_file():
        raise InputError(f"`topology` must be a structure file, but {topology_path} does not exist")
    if topology_path.suffix.lower() in TOPOLOGY_SUFFIXES:
        return mdtraj.load_topology(str(topology_path))
    try:
        first = next(iter(ase.io.iread(topology_path, index=0)))
    except Exception as error:
        raise InputError(
            f"`topology` must be a PDB or a structure file ASE reads, but {topology_path} is not ({error})"
        ) from error
    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for number, symbol in zip(first.numbers, first.symbols, strict=True):
        topology.add_atom(symbol, mdtraj.element.Element.getByAtomicNumber(int(number)), residue)
    return topology


@dataclass(frozen=True)
class _Block:
    """Some frames, in nm, ps and kJ/mol; None for what the file does not have."""

    positions: np.ndarray
    cell: np.ndarray | None
    times: np.ndarray | None
    velocities: np.ndarray | None = None
    potential: np.ndarray | None = None
    kinetic: np.ndarray | None = None


def _blocks(parts: Iterator[Any], path: Path) -> Iterator[_Block]:
    for part in parts:
        yield _Block(part.xyz, part.unitcell_vectors, None if path.suffix.lower() == ".dcd" else part.time)


def _hdf5_blocks(mdtraj: ModuleType, file: Any) -> Iterator[_Block]:
    n_frames = chunk_length(3 * file.topology.n_atoms)
    while len(part := file.read(n_frames)):
        cell = None
        if part.cell_lengths is not None:
            vectors = mdtraj.utils.lengths_and_angles_to_box_vectors(*part.cell_lengths.T, *part.cell_angles.T)
            cell = np.stack(vectors, axis=1)
        yield _Block(part.coordinates, cell, part.time, part.velocities, part.potentialEnergy, part.kineticEnergy)


def _convert(topology: Any, blocks: Iterator[_Block], path: Path) -> Trajectory:
    """From mdtraj's nm, ps, kJ/mol and dalton; sites that are no atoms are left out."""
    elements = [atom.element for atom in topology.atoms]
    real = np.array([element is not None and element.atomic_number > 0 for element in elements])
    numbers = np.array(
        [one.atomic_number for one, is_real in zip(elements, real, strict=True) if is_real], dtype=np.int64
    )
    masses = np.array([one.mass for one, is_real in zip(elements, real, strict=True) if is_real], dtype=np.float64)
    positions, cell, momenta = Rows(len(masses), 3), Rows(3, 3), Rows(len(masses), 3)
    times, potential, kinetic = Rows(), Rows(), Rows()
    per_velocity = units.ANGSTROM_PER_NANOMETER / (_FS_PER_PS * units.FEMTOSECOND)
    for block in blocks:
        for rows, values, factor in (
            (positions, block.positions, units.ANGSTROM_PER_NANOMETER),
            (cell, block.cell, units.ANGSTROM_PER_NANOMETER),
            (momenta, block.velocities, per_velocity * masses[:, None]),
            (times, block.times, _FS_PER_PS),
            (potential, block.potential, units.EV_PER_KJ_PER_MOL),
            (kinetic, block.kinetic, units.EV_PER_KJ_PER_MOL),
        ):
            if values is not None:
                if rows is positions or rows is momenta:
                    values = values[:, real]
                rows.extend(np.asarray(values, dtype=np.float64) * factor)
    n_frames = positions.length

    def known(rows: Rows) -> np.ndarray | None:
        return rows.array() if n_frames and rows.length == n_frames else None

    cells, times_fs, energy, energies = known(cell), known(times), known(potential), None
    velocities = known(momenta)
    notes = _dcd_notes(path, n_frames) if path.suffix.lower() == ".dcd" else ()
    if not real.all():
        notes += (f"{np.sum(~real)} sites that are no atoms were left out",)
    if energy is not None:
        energies = Energies(times_fs, energy, known(kinetic))
        if velocities is not None and energies.kinetic is not None and not _agree(velocities, masses, energies.kinetic):
            velocities = None
            notes += (
                f"the kinetic energies in {path.name} are not those of its velocities with the masses of the elements, "
                "which are all that the file has; the velocities were left out",
            )
    return Trajectory(
        source=str(path),
        numbers=numbers,
        masses=masses,
        positions=positions.array(),
        cell=np.zeros((n_frames, 3, 3)) if cells is None else cells,
        pbc=np.full(3, cells is not None),
        times_fs=times_fs,
        momenta=velocities,
        energies=energies,
        notes=notes,
    )


def _agree(momenta: np.ndarray, masses: np.ndarray, kinetic: np.ndarray) -> bool:
    """Whether the momenta have these kinetic energies, as they have not with other masses than those of the run."""
    chosen = np.unique(np.linspace(0, len(kinetic) - 1, min(len(kinetic), _MOST_COMPARED)).astype(np.int64))
    found = 0.5 * np.einsum("tnk,tnk,n->", momenta[chosen], momenta[chosen], 1.0 / masses)
    return bool(abs(found - kinetic[chosen].sum()) <= _SAME_ENERGY * kinetic[chosen].sum())


def _dcd_notes(path: Path, n_frames: int) -> tuple[str, ...]:
    """What to say when a DCD file has other frames than its header counts; mdtraj reads the whole ones."""
    with open(path, "rb") as file:
        header = file.read(12)  # record length, "CORD", number of frames
    announced = int.from_bytes(header[8:12], "little" if header[0] else "big")
    return () if announced == n_frames else (f"{path.name} announces {announced} frames and has {n_frames}",)
