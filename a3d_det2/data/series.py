"""The slices of one CT series on disk: PNG files in a folder, or the packed file made from them."""

import os
import re

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


class NumberedFiles(PngSeries):
    """Slices of any name with a number in it, such as ``scan7_slice012.png``: all files in the folder whose names
    differ from that of the key slice in the number alone.

    Args:
        key_path: path of the key slice.
        pattern: regular expression with one group, the number, searched in the name of the file.

    Attributes:
        key: the number of the key slice.
        numbers: those of the slices on disk, in order.

    Raises:
        ValueError: if the pattern does not find a number in the name.
    """

    def __init__(self, key_path: str, pattern: str):
        self._folder, name = os.path.split(key_path)
        match = re.search(pattern, name)
        if not match or not match[1].isdecimal():
            raise ValueError(f"{key_path}: expected a name with a slice number, as {pattern!r} finds it.")
        before, after = re.escape(name[: match.start(1)]), re.escape(name[match.end(1) :])
        names = sorted(os.listdir(self._folder or "."), key=len) if os.path.isdir(self._folder or ".") else []
        found = {other: re.fullmatch(rf"{before}(\d{{1,18}}){after}", other) for other in names}
        self._names = {int(number[1]): other for other, number in found.items() if number}
        self.key = int(match[1])
        self._form = name[: match.start(1)], len(match[1]), name[match.end(1) :]
        self.numbers = sorted(self._names)

    def path(self, number: int) -> str:
        before, digits, after = self._form
        return os.path.join(self._folder, self._names.get(number, f"{before}{number:0{digits}d}{after}"))


def open_series(folder: str, packed: bool = True) -> PngSeries | PackedSeries:
    """Open ``Images_png/SERIES``, or the packed ``Images_packed/SERIES.b2nd`` where it exists and ``packed`` is set.

    Raises:
        UnreadableSlice: if the packed file is damaged.
    """
    path = packed_path(folder)
    return PackedSeries(path) if packed and os.path.exists(path) else PngSeries(folder)
