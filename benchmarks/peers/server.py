"""What every peer's script runs: constant-energy steps in ASE, timed when asked to.

A request is a line of JSON on stdin, {"system": file, "seconds": limit}; the answer is a line of JSON on stdout.
Between requests the process waits, so that several peers take turns on one machine.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

TIMESTEP, TEMPERATURE = 0.5, 300.0  # fs, K
WARM_UP, MOST = 5, 200  # steps
ELEMENTS = ["H", "C", "N", "O"]


def serve(make_calculator: Callable[[Atoms], Calculator], versions: dict[str, str]) -> None:
    """Answers requests until stdin ends; `make_calculator` gets the structure that it is for."""
    answers = os.fdopen(os.dup(1), "w")  # libraries print to stdout as they like
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = timed(make_calculator, ase.io.read(request["system"]), request["seconds"])
            except Exception as error:  # of a peer's own making; the others go on
                answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            print(json.dumps({**answer, **versions}), file=answers, flush=True)


_KEPT: dict[str, Calculator] = {}


def timed(make_calculator: Callable[[Atoms], Calculator], atoms: Atoms, seconds: float) -> dict:
    """Median milliseconds of a step, the neighbour list included, from the same start each time."""
    key = str(atoms.symbols)
    began = time.perf_counter()
    first = key not in _KEPT
    if first:
        _KEPT[key] = make_calculator(atoms)
    atoms.calc = _KEPT[key]
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
    forces = atoms.get_forces()
    cold_start = time.perf_counter() - began
    durations: list[float] = []
    start = time.perf_counter()
    while len(durations) < WARM_UP + MOST and (len(durations) < 2 or time.perf_counter() - start < seconds):
        began = time.perf_counter()
        forces = dynamics.step(forces)
        durations.append(time.perf_counter() - began)
    kept = durations[min(WARM_UP, len(durations) - 1) :]
    answer = {"milliseconds": 1e3 * float(np.median(kept)), "steps": len(kept)}
    if first:
        answer["cold_start_seconds"] = cold_start
    answer["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return answer
