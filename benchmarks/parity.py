"""Parity with independent implementations: the same weights in a peer's module and ours, in float64.

uv run benchmarks/parity.py            # all peers; writes benchmarks/parity.json and benchmarks/parity.md
uv run benchmarks/parity.py schnet # peers whose script's name contains the word; only prints

Peers pin clashing versions: each script in tests/parity runs in an environment of its own, which uv makes from the
script's header. The first time, that downloads some GB.
"""

import argparse
import json
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT = 1e-6  # of both relative errors
KEYS = {"script", "architecture", "peer", "torch", "energy_relative_error", "forces_relative_error", "deviations"}


def scripts() -> list[Path]:
    """The scripts in tests/parity that compare with a peer: those with requirements of their own."""
    files = sorted((ROOT / "tests" / "parity").glob("*.py"))
    return [file for file in files if file.read_text(encoding="utf8").startswith("# /// script")]


def compare(script: Path) -> list[dict[str, Any]]:
    """Runs one script in its own environment.

    Returns:
        One row for each architecture, as `report` in tests/parity/common.py prints it.

    Raises:
        RuntimeError: the script failed or printed no row.
    """
    command = ["uv", "run", "--no-project", "--script", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"architecture"')]
    if done.returncode != 0 or not printed:
        lines = f"{len(printed)} rows:\n{done.stderr[-4000:]}"
        raise RuntimeError(f"{script.name} ended with {done.returncode} and {lines}")
    return [{"script": script.name, **row} for row in printed]


def check(row: dict[str, Any]) -> None:
    """Raises an AssertionError if a row is incomplete or above the limits."""
    assert set(row) == KEYS
    for quantity in ("energy", "forces"):
        error = row[f"{quantity}_relative_error"]
        assert error <= LIMIT, f"{row['architecture']}, {row['peer']}: {quantity} differ by {error:.1e} > {LIMIT:.0e}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| architecture | peer | torch | energy, relative error | forces, relative error | made comparable by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        errors = f"{row['energy_relative_error']:.0e} | {row['forces_relative_error']:.0e}"
        lines.append(f"| {row['architecture']} | {row['peer']} | {row['torch']} | {errors} | {row['deviations']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="only scripts whose name contains it")
    word: str = parser.parse_args().word
    chosen = [script for script in scripts() if word in script.stem]
    if not chosen:
        parser.error(f"no script in tests/parity is named like '{word}'")
    rows = [row for script in chosen for row in compare(script)]
    print(table(rows))
    for row in rows:
        check(row)
    if word:
        return
    evidence = {
        "command": "uv run benchmarks/parity.py",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU",
        "limit": LIMIT,
        "rows": rows,
    }
    (ROOT / "benchmarks" / "parity.json").write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf8")
    text = f"""# Parity with independent implementations

The same weights in the peer's module and ours give the same energies and forces: a rattled ethanol molecule and,
where the peer can, a triclinic crystal whose atoms see their own images. Float64; the error is the largest difference
over the largest value; the limit is {LIMIT:.0e}. Made by `{evidence["command"]}` on {evidence["date"]}.

{table(rows)}
"""
    (ROOT / "benchmarks" / "parity.md").write_text(text, encoding="utf8")


if __name__ == "__main__":
    main()
