"""Shared by the tests: where the reference data is."""

import os
from pathlib import Path

import pytest


def shared_data(*parts: str) -> Path:
    """A file of the reference data, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("GGNN_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data absent: {path} (set GGNN_DATA to the folder that holds it)")
    return path
