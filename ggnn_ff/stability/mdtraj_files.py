"""Trajectories in the formats of other simulation programs, read through mdtraj."""

from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np

from ggnn_ff import units
from ggnn_ff.errors import InputError
from ggnn_ff.stability.frames import Energies, Trajectory

MDTRAJ_SUFFIXES = (".dcd", ".xtc", ".trr", ".nc", ".netcdf", ".h5", ".hdf5")
HDF5_SUFFIXES = (".h5", ".hdf5")
"""mdtraj's own format, written by its HDF5Reporter for OpenMM; carries topology, velocities and energies."""
TOPOLOGY_SUFFIXES = (".pdb", ".gro", ".prmtop", ".parm7", ".psf", ".mol2", ".cif", ".h5", ".hdf5")
"""Topology files left to mdtraj; any other is given to ASE."""

_FS_PER_PS = 1000.0


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
    hdf5 = path.suffix.lower() in HDF5_SUFFIXES
    try:
        if hdf5:
            return _convert(mdtraj.load(str(path)), _hdf5_record(mdtraj, path), path)
        return _convert(mdtraj.load(str(path), top=_topology(mdtraj, path, topology)), None, path)
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


def _hdf5_record(mdtraj: ModuleType, path: Path) -> Any:
    with mdtraj.formats.HDF5TrajectoryFile(str(path)) as file:
        return file.read()


def _convert(frames: Any, record: Any, path: Path) -> Trajectory:
    """From mdtraj's nm, ps, kJ/mol and dalton."""
    atoms = list(frames.topology.atoms)
    numbers = np.array([atom.element.atomic_number for atom in atoms], dtype=np.int64)
    masses = np.array([atom.element.mass for atom in atoms], dtype=np.float64)
    n_frames = len(frames.xyz)
    periodic = frames.unitcell_vectors is not None
    cell = np.zeros((n_frames, 3, 3))
    if periodic:
        cell = np.asarray(frames.unitcell_vectors, dtype=np.float64) * units.ANGSTROM_PER_NANOMETER
    times_fs = None
    notes: tuple[str, ...] = ()
    if path.suffix.lower() == ".dcd":
        notes = _dcd_notes(path, n_frames)
    else:
        times_fs = np.asarray(frames.time, dtype=np.float64) * _FS_PER_PS
    momenta = energies = None
    if record is not None and record.velocities is not None:
        velocities = np.asarray(record.velocities, dtype=np.float64)  # nm/ps
        velocities *= units.ANGSTROM_PER_NANOMETER / (_FS_PER_PS * units.FEMTOSECOND)
        momenta = masses[:, None] * velocities
    if record is not None and record.potentialEnergy is not None:
        kinetic = None
        if record.kineticEnergy is not None:
            kinetic = np.asarray(record.kineticEnergy, dtype=np.float64) * units.EV_PER_KJ_PER_MOL
        potential = np.asarray(record.potentialEnergy, dtype=np.float64) * units.EV_PER_KJ_PER_MOL
        energies = Energies(times_fs, potential, kinetic)
    return Trajectory(
        source=str(path),
        numbers=numbers,
        masses=masses,
        positions=np.asarray(frames.xyz, dtype=np.float64) * units.ANGSTROM_PER_NANOMETER,
        cell=cell,
        pbc=np.full(3, periodic),
        times_fs=times_fs,
        momenta=momenta,
        energies=energies,
        notes=notes,
    )


def _dcd_notes(path: Path, n_frames: int) -> tuple[str, ...]:
    """What to say when a DCD file has other frames than its header counts; mdtraj reads the whole ones."""
    with open(path, "rb") as file:
        header = file.read(12)  # record length, "CORD", number of frames
    announced = int.from_bytes(header[8:12], "little" if header[0] else "big")
    return () if announced == n_frames else (f"{path.name} announces {announced} frames and has {n_frames}",)
