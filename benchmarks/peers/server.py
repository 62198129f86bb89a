"""What every peer's script runs: constant-energy steps in ASE, or steps of a training, timed when asked to.

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

TIMESTEP, TEMPERATURE = 0.05, 300.0  # fs, K; small, since random weights would blow structures up
WARM_UP, MOST = 5, 200  # steps
ELEMENTS = ["H", "C", "N", "O"]


def serve(make_calculator: Callable[[Atoms], Calculator], versions: dict[str, str]) -> None:
    """Answers requests until stdin ends; `make_calculator` gets the structure that it is for."""
    answer_requests(
        lambda request: timed(make_calculator, ase.io.read(request["system"]), request["seconds"]), versions
    )


def serve_training(make_step: Callable[[str], Callable[[], None]], versions: dict[str, str]) -> None:
    """The same for steps of a training; `make_step` gets the file with the labelled frames."""
    steps: dict[str, Callable[[], None]] = {}

    def answer(request: dict) -> dict:
        if request["system"] not in steps:
            steps[request["system"]] = make_step(request["system"])
            for _ in range(WARM_UP):
                steps[request["system"]]()
        durations: list[float] = []
        while len(durations) < 2 or sum(durations) < request["seconds"]:
            began = time.perf_counter()
            steps[request["system"]]()
            durations.append(time.perf_counter() - began)
        return {"milliseconds": 1e3 * float(np.median(durations)), "steps": len(durations)}

    answer_requests(answer, versions)


def answer_requests(answer: Callable[[dict], dict], versions: dict[str, str]) -> None:
    """A line of JSON for each line of JSON."""
    answers = os.fdopen(os.dup(1), "w")  # libraries print to stdout as they like
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            try:
                found = answer(json.loads(line))
            except Exception as error:  # of a peer's own making; the others go on
                found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            print(json.dumps({**found, **versions}), file=answers, flush=True)


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
