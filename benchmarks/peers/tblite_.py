# /// script
# requires-python = "==3.11.*"
# dependencies = ["tblite", "ase", "numpy"]
# ///
"""GFN2-xTB."""

from importlib.metadata import version

from ase import Atoms
from server import serve
from tblite.ase import TBLite


def make_calculator(atoms: Atoms) -> TBLite:
    return TBLite(method="GFN2-xTB", verbosity=0)


serve(make_calculator, {"tblite": version("tblite")})
