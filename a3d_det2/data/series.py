"""The slices of one CT series on disk: PNG files in a folder, or the packed file made from them."""

import os

import numpy as np

from ..files import slice_number
from .packed import PackedSeries, packed_path
from .png import read_png


def series_name(path: str) -> str:
    """Name the series of a slice: "000001_01_01" for ".../000001_01_01/109.png"."""
    return os.path.basename(os.path.dirname(path))


class PngSeries:
    """Slices as ``folder/NNN.png``.

    Attributes:
        numbers: those of the slices on disk, in order.
    """

    def __init__(self, folder: str):
        self._folder = folder
        # Of 1.png and 001.png the latter is taken.
        names = sorted(os.listdir(folder), key=len) if os.path.isdir(folder) else []
        self._names = {slice_number(name): name for name in names if name.endswith(".png")}
        self.numbers = sorted(self._names.keys() - {None})

    def path(self, number: int) -> str:
        """Give the path of a slice, whether it is there or not."""
        return os.path.join(self._folder, self._names.get(number, f"{number:03d}.png"))

    def read(self, number: int, verify: bool = False) -> np.ndarray:
        """Read a slice, (H, W) uint16 as stored; raises as :func:`read_png`. A PNG is always verified."""
        return read_png(self.path(number))


def open_series(folder: str, packed: bool = True) -> PngSeries | PackedSeries:
    """Open ``Images_png/SERIES``, or the packed ``Images_packed/SERIES.b2nd`` where it exists and ``packed`` is set.

    Raises:
        UnreadableSlice: if the packed file is damaged.
    """
    path = packed_path(folder)
    return PackedSeries(path) if packed and os.path.exists(path) else PngSeries(folder)
