"""The same weights give the same energies and forces in independent implementations, each in its own environment."""

import parity
import pytest


@pytest.mark.parity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("script", parity.scripts(), ids=lambda script: script.stem)
def test_parity(script):
    for row in parity.compare(script):
        parity.check(row)


def test_check_rejects():
    row = dict.fromkeys(parity.KEYS, "x") | {"energy_relative_error": 1e-9, "forces_relative_error": 1e-9}
    parity.check(row)
    for broken in (row | {"forces_relative_error": 2e-6}, row | {"energy_relative_error": float("nan")}, {}):
        with pytest.raises(AssertionError):
            parity.check(broken)
