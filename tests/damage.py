"""Ways to damage a dataset in DeepLesion's layout."""

import csv
import os
from pathlib import Path

import numpy as np
from PIL import Image


class Dataset:
    """A phantom on disk that can be damaged.

    Attributes:
        rows: of DL_info.csv; :meth:`save` writes them.
    """

    def __init__(self, root: Path):
        self.root = root
        with open(root / "DL_info.csv", newline="") as f:
            self.rows = list(csv.DictReader(f))

    def save(self) -> None:
        with open(self.root / "DL_info.csv", "w", newline="") as f:
            writer = csv.DictWriter(f, self.rows[0].keys())
            writer.writeheader()
            writer.writerows(self.rows)

    def key_slices(self, split: int) -> list[dict]:
        """One row per key slice of a split (1 train, 2 val, 3 test)."""
        rows = {row["File_name"]: row for row in self.rows if row["Train_Val_Test"] == str(split)}
        return list(rows.values())

    def path(self, row: dict, offset: int = 0) -> Path:
        """The key slice, or the slice ``offset`` further on."""
        series, _, number = row["File_name"][:-4].rpartition("_")
        return self.root / "Images_png" / series / f"{int(number) + offset:03d}.png"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])


def make_8_bit(path: Path) -> None:
    with Image.open(path) as image:
        size = image.size
    Image.new("L", size).save(path)


def resize(path: Path) -> None:
    Image.fromarray(np.full((17, 19), 32768, np.uint16)).save(path)
