"""The potential as an ASE calculator."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ggnn_ff.compiled import CompiledEnergyForces, fast_form
from ggnn_ff.contract import check_elements
from ggnn_ff.export import LoadedPotential, as_loaded
from ggnn_ff.graph import Structure, from_atoms, moved
from ggnn_ff.steps import make_steps


class GGNNCalculator(Calculator):
    """ASE calculator with energy, free_energy, energies, forces, and stress for three-dimensional periodicity.

    Example:
        atoms.calc = GGNNCalculator("ethanol-pbe")
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 (ASE's own form)
    use_cache = False  # `calculate` keeps what was calculated, and more cheaply where only positions change

    def __init__(
        self,
        potential: str | Path | LoadedPotential,
        device: str = "cpu",
        dtype: str | None = None,
        compile: bool | None = None,
    ) -> None:
        """Loads the potential; no global state of torch is changed.

        Args:
            potential: name of a shipped potential, path of a file or folder, or an object from `load_potential`.
            device: such as "cpu" or "cuda"; for names and paths only.
            dtype: "float32" or "float64"; by default that of the training; for names and paths only.
            compile: to machine code, which takes about a minute once and is several times faster. By default where
                there is a C++ compiler (and GGNN_FF_COMPILE is not 0).

        Raises:
            InputError: what cannot be loaded, or compiled if `compile` is True.
        """
        super().__init__()
        self.potential = fast_form(as_loaded(potential, device, dtype), compile)
        self.parameters.update(potential_sha256=self.potential.contract.identity, dtype=self.potential.dtype)
        self.predict = make_steps(self.potential)
        self.gradients: Callable[[], AbstractContextManager] = nullcontext
        if not isinstance(self.potential.module, CompiledEnergyForces):
            # Forces are a gradient, also where the caller has switched gradients off.
            self.gradients = partial(torch.inference_mode, False)
        self.last: tuple[Atoms, Structure] | None = None  # what was calculated last

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What has changed since the last calculation; exactly, and faster than ASE's comparison within a tolerance."""
        before = self.atoms
        if before is None:
            return list(all_changes)
        pairs = {
            "positions": (before.positions, atoms.positions),
            "numbers": (before.numbers, atoms.numbers),
            "cell": (before.cell.array, atoms.cell.array),
            "pbc": (before.pbc, atoms.pbc),
        }
        return [name for name, (old, new) in pairs.items() if old.tobytes() != new.tobytes()]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fills `results`, in eV and angstrom.

        Raises:
            InputError: an element the potential does not know, or a broken structure.
            PropertyNotImplementedError: stress without a cell that is periodic in three directions.
        """
        with self.gradients():
            structure = self._take(atoms, system_changes)
            periodic = all(self.atoms.pbc)
            if "stress" in (properties or []) and not periodic:
                raise PropertyNotImplementedError(
                    f"stress needs a cell that is periodic in three directions, got pbc={self.atoms.pbc.tolist()}"
                )
            prediction = self.predict(structure)
        energy = float(prediction.energy[0])
        results: dict[str, Any] = {
            "energy": energy,
            "free_energy": energy,
            "energies": prediction.atomic_energies.numpy(),
            "forces": prediction.forces.numpy(),
        }
        if periodic:
            results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress[0].numpy())
        self.results = results

    def _take(self, atoms: Atoms | None, system_changes: list[str]) -> Structure:
        """Keeps `atoms` (None: those that are kept) in `self.atoms`, and returns them as a checked structure."""
        if self.last is not None and system_changes == ["positions"] and atoms is not None:
            kept, structure = self.last
            structure = moved(structure, atoms.positions)
            kept.arrays["positions"] = structure.positions.numpy()
        else:
            kept = (self.atoms if atoms is None else atoms).copy()
            structure = from_atoms(kept)
            check_elements(self.potential.contract, kept.numbers)
        self.atoms, self.last = kept, (kept, structure)
        return structure
