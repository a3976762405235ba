import csv

import pytest

from a3d_det2.engine.archive import store
from a3d_det2.engine.archive.manifest import COLUMNS


@pytest.fixture
def write_manifest(tmp_path):
    """Writes a manifest of items that are what a stub is to do with them; returns its path."""

    def write(kinds):
        path = tmp_path / "archive.csv"
        with open(path, "w", newline="") as f:
            rows = [(name, tmp_path / kind, "") for name, kind in kinds.items()]
            csv.writer(f).writerows([COLUMNS, *rows])
        return str(path)

    return write


@pytest.fixture
def record(tmp_path):
    """The record of an item of the output in tmp_path/out."""
    return lambda name: store.read_record(str(tmp_path / "out"), name)
