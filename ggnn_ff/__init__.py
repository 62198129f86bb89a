"""Geometric graph neural networks as molecular-dynamics force fields.

`load_potential`, `GGNNCalculator` (ASE), `openmm_force` and `guarded` are loaded on first use, so that importing the
package costs nothing and hosts that are not installed are not missed.
"""

from typing import TYPE_CHECKING, Any

from ggnn_ff.errors import InputError

if TYPE_CHECKING:
    from ggnn_ff.dynamics.guarded import guarded
    from ggnn_ff.export import load_potential
    from ggnn_ff.hosts.ase import GGNNCalculator
    from ggnn_ff.hosts.openmm import openmm_force

__all__ = ["GGNNCalculator", "InputError", "guarded", "load_potential", "openmm_force"]


def __getattr__(name: str) -> Any:
    if name == "load_potential":
        from ggnn_ff.export import load_potential

        return load_potential
    if name == "GGNNCalculator":
        from ggnn_ff.hosts.ase import GGNNCalculator

        return GGNNCalculator
    if name == "openmm_force":
        from ggnn_ff.hosts.openmm import openmm_force

        return openmm_force
    if name == "guarded":
        from ggnn_ff.dynamics.guarded import guarded

        return guarded
    raise AttributeError(f"module 'ggnn_ff' has no attribute '{name}'")
