"""The same weights give the same energies and forces in independent implementations, each in its own environment."""

import json

import parity
import pytest


@pytest.mark.parity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("script", parity.scripts(), ids=lambda script: script.stem)
def test_parity(script):
    for row in parity.compare(script):
        parity.check(row)


def test_committed_table_is_complete_and_within_the_limits():
    rows = json.loads((parity.ROOT / "benchmarks" / "parity.json").read_text(encoding="utf8"))["rows"]
    assert {row["script"] for row in rows} == {script.name for script in parity.scripts()}
    for row in rows:
        parity.check(row)


def test_check_rejects():
    row = dict.fromkeys(parity.KEYS, "x") | {"energy_relative_error": 1e-9, "forces_relative_error": 1e-9}
    parity.check(row)
    for broken in (row | {"forces_relative_error": 2e-6}, row | {"energy_relative_error": float("nan")}, {}):
        with pytest.raises(AssertionError):
            parity.check(broken)
