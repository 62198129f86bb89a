"""Steps per host: what ASE, a TorchForce and a PythonForce add to the bare call of a compiled potential.

uv run benchmarks/hosts.py ethanol-pbe ethanol     # 100,000 steps each; writes benchmarks/hosts.json and hosts.md

Blocks of steps in turns, so that what disturbs the machine disturbs all; medians over blocks, the first and the last
tenth of them beside each other to show decay. One thread, float32. OpenMM runs on its Reference platform: a step of its
CPU platform wakes threads, which takes longer than all that a molecule needs apart from its potential.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import openmm
import torch
from ase import units
from ase.md.verlet import VelocityVerlet

from ggnn_ff import GGNNCalculator, openmm_force
from ggnn_ff.compiled import compile_potential
from ggnn_ff.data.structures import find_structure
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.dynamics.start import first_state
from ggnn_ff.export import load_potential
from ggnn_ff.graph import from_atoms
from ggnn_ff.hosts.openmm import make_topology
from ggnn_ff.neighbors import neighbor_list

ROOT = Path(__file__).parents[1]
TIMESTEP, TEMPERATURE = 0.5, 300.0  # fs, K


def bare(potential: str, structure: str) -> Callable[[int], None]:
    """Energy, forces and stress of one structure with a given neighbour list."""
    compiled, graph = compile_potential(load_potential(potential)), from_atoms(find_structure(structure))
    edge_index, shifts = neighbor_list(graph, compiled.contract.cutoff)
    tensors = (graph.positions, graph.numbers, graph.cell, edge_index, shifts, graph.batch)

    def step(n_steps: int) -> None:
        for _ in range(n_steps):
            compiled.module(*tensors, 1)

    return step


def ase_steps(potential: str, structure: str) -> Callable[[int], None]:
    atoms = first_state(find_structure(structure), make_settings(temperature=TEMPERATURE))
    atoms.calc = GGNNCalculator(potential, compile=True)
    return VelocityVerlet(atoms, TIMESTEP * units.fs).run


def openmm_steps(potential: str, structure: str, backend: str) -> Callable[[int], None]:
    atoms = find_structure(structure)
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(openmm_force(potential, make_topology(atoms), backend=backend))
    context = openmm.Context(
        system,
        openmm.VerletIntegrator(TIMESTEP * 1e-3),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(atoms.positions / 10.0)
    context.setVelocitiesToTemperature(TEMPERATURE, 0)

    def step(n_steps: int) -> None:
        context.getIntegrator().step(n_steps)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potential")
    parser.add_argument("structure")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--block", type=int, default=500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    hosts = {
        "bare call": bare(given.potential, given.structure),
        "ASE": ase_steps(given.potential, given.structure),
        "TorchForce": openmm_steps(given.potential, given.structure, "torch"),
        "PythonForce": openmm_steps(given.potential, given.structure, "python"),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in hosts}
    for step in hosts.values():
        step(given.block)  # the first calls are slower
    for _ in range(given.steps // given.block):
        for name, step in hosts.items():
            began = time.perf_counter()
            step(given.block)
            milliseconds[name].append(1e3 * (time.perf_counter() - began) / given.block)
    lines = ["| host | ms/step | over the bare call | first tenth | last tenth |", "|---|---:|---:|---:|---:|"]
    reference = float(np.median(milliseconds["bare call"]))
    for name, values in milliseconds.items():
        tenth, middle = max(1, len(values) // 10), float(np.median(values))
        first, last = np.median(values[:tenth]), np.median(values[-tenth:])
        lines.append(f"| {name} | {middle:.3f} | {middle / reference:.2f} | {first:.3f} | {last:.3f} |")
    about = (
        f"{given.potential}, {given.structure}, {given.steps} steps of {TIMESTEP} fs each, one thread, compiled, "
        f"medians over blocks of {given.block} steps in turns; {date.today()}, torch {torch.__version__}, "
        f"openmm {openmm.__version__}. Made by `uv run benchmarks/hosts.py {given.potential} {given.structure}`."
    )
    text = f"# Steps per host\n\n{about}\n\n" + "\n".join(lines) + "\n"
    print(text)
    evidence = {"about": about, "machine": platform.platform(), "milliseconds": milliseconds}
    (ROOT / "benchmarks" / "hosts.json").write_text(json.dumps(evidence) + "\n", encoding="utf8")
    (ROOT / "benchmarks" / "hosts.md").write_text(text, encoding="utf8")


if __name__ == "__main__":
    main()
