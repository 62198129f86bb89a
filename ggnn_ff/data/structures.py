"""A molecule from what a person calls it: a common name, an ASE name, a SMILES string or a file."""

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from ggnn_ff.errors import InputError, nearest

COMMON_NAMES: dict[str, str] = {  # English name -> name in ASE's collection of molecules
    "acetaldehyde": "CH3CHO",
    "acetic acid": "CH3COOH",
    "acetone": "CH3COCH3",
    "acetylene": "C2H2",
    "ammonia": "NH3",
    "benzene": "C6H6",
    "dimethyl ether": "CH3OCH3",
    "ethane": "C2H6",
    "ethanol": "CH3CH2OH",
    "ethene": "C2H4",
    "ethylene": "C2H4",
    "formaldehyde": "H2CO",
    "formic acid": "HCOOH",
    "furan": "C4H4O",
    "hydrogen peroxide": "H2O2",
    "methane": "CH4",
    "methanol": "CH3OH",
    "propane": "C3H8",
    "pyridine": "C5H5N",
    "pyrrole": "C4H4NH",
    "thiophene": "C4H4S",
    "water": "H2O",
}


def find_structure(structure: str | Path | Atoms) -> Atoms:
    """The molecule that `structure` names.

    Tried in this order: Atoms as they are; a file that exists, of any kind ASE reads (its last frame); a
    common name such as "ethanol"; a name that `ase.build.molecule` knows; a SMILES string through rdkit. A
    few strings are both an ASE name and a SMILES ("CO" is carbon monoxide or methanol): the name wins,
    "smiles:CO" forces the other.

    Returns:
        A copy with initial charges and magnetic moments where the source has them.

    Raises:
        InputError: nothing of that name, or a SMILES string without rdkit.
    """
    if isinstance(structure, Atoms):
        return structure.copy()
    path, name = Path(structure), str(structure)
    if path.is_file():
        return _from_file(path)
    if name.startswith("smiles:"):
        return _from_smiles(name.removeprefix("smiles:"))
    if name.lower() in COMMON_NAMES:
        return molecule(COMMON_NAMES[name.lower()])
    if name in g2.names:
        return molecule(name)
    if isinstance(structure, Path) or path.suffix in (
        ".xyz",
        ".extxyz",
        ".pdb",
        ".mol",
        ".sdf",
        ".traj",
        ".cif",
    ):
        raise InputError(f"`structure` must be a file that exists, got {path}")
    return _from_smiles(name)


def _from_file(path: Path) -> Atoms:
    try:
        atoms = ase.io.read(path)
    except Exception as error:  # ASE's readers raise whatever their parsing happens to raise
        raise InputError(
            f"`structure`: ASE cannot read {path} ({type(error).__name__}: {error}); give a file of another "
            "kind, such as xyz"
        ) from error
    if not isinstance(atoms, Atoms):
        raise InputError(f"`structure`: {path} must hold a structure, got {type(atoms).__name__}")
    if not np.isfinite(atoms.positions).all():
        raise InputError(f"`structure`: the positions in {path} must be finite, got NaN or infinity; correct the file")
    return atoms


def _from_smiles(smiles: str) -> Atoms:
    """Structure by rdkit: distance geometry, then the MMFF94 force field where it has parameters."""
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
    except ImportError as error:
        raise InputError(
            f"`structure` must be a file, a name ASE knows or, with rdkit, SMILES; got '{smiles}'"
            f"{nearest(smiles, [*COMMON_NAMES, *g2.names])}. If it is SMILES, install rdkit: "
            'pip install "ggnn-ff[smiles]"'
        ) from error
    with rdBase.BlockLogs():
        parsed = Chem.MolFromSmiles(smiles)
        if parsed is None or parsed.GetNumAtoms() == 0:
            raise InputError(
                f"`structure` must be a file that exists, a name ASE knows or valid SMILES, got '{smiles}'"
                f"{nearest(smiles, [*COMMON_NAMES, *g2.names])}"
            )
        parsed = Chem.AddHs(parsed)
        if rdDistGeom.EmbedMolecule(parsed, randomSeed=1) != 0:
            raise InputError(
                f"`structure`: rdkit finds no three-dimensional structure for the SMILES '{smiles}'; give a "
                "file instead"
            )
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(parsed):
            rdForceFieldHelpers.MMFFOptimizeMolecule(parsed)
    return Atoms(
        numbers=[atom.GetAtomicNum() for atom in parsed.GetAtoms()],
        positions=parsed.GetConformer().GetPositions(),
        charges=[float(atom.GetFormalCharge()) for atom in parsed.GetAtoms()],
        magmoms=[float(atom.GetNumRadicalElectrons()) for atom in parsed.GetAtoms()],
    )
