"""A series packed into one file: an array (slices, H, W) of Blosc2, one chunk a slice.

``Images_packed/SERIES.b2nd`` lies beside ``Images_png/SERIES/``. It decodes several times faster than PNG, to the same
bits, and Blosc2 alone reads it: ``blosc2.open(path)[k]`` is slice ``blosc2.open(path).schunk.vlmeta["numbers"][k]``.
"""

import os
import shutil
import zlib
from collections.abc import Iterable

import numpy as np

from ..files import replacing
from .png import UnreadableSlice

PACKED_DIR = "Images_packed"
# What Blosc2 raises where a file is damaged.
_DAMAGE = (RuntimeError, ValueError, LookupError, AttributeError, TypeError, SyntaxError, ArithmeticError, MemoryError)


def packed_path(folder: str) -> str:
    """Give the path of the packed file, ``Images_packed/SERIES.b2nd``, that belongs to ``Images_png/SERIES``."""
    image_root, series = os.path.split(os.path.abspath(folder))
    return os.path.join(os.path.dirname(image_root), PACKED_DIR, f"{series}.b2nd")


def write_packed(path: str, numbers: list[int], slices: Iterable[np.ndarray]) -> None:
    """Write a series in one step; the same slices give the same bytes.

    Args:
        path: of the file.
        numbers: those of the slices, in order.
        slices: one (H, W) uint16 per number.

    Raises:
        ValueError: if the slices differ in size.
        OSError: if the file cannot be written.
        ImportError: if Blosc2 is not installed.
    """
    array, checksums = None, []
    try:
        with replacing(path) as part:
            for k, image in enumerate(slices):
                if array is None:
                    array = _empty(part, (len(numbers), *image.shape))
                if image.shape != array.shape[1:]:
                    raise ValueError(f"{path}: expected slices of size {array.shape[1:]}, got {image.shape}.")
                array[k] = image
                checksums.append(zlib.crc32(np.ascontiguousarray(image)))
            array.schunk.vlmeta["numbers"] = numbers
            array.schunk.vlmeta["crc32"] = checksums
            array.schunk.vlmeta["series"] = _series_name(path)
            del array
    except RuntimeError as error:  # all that Blosc2 says of a full disk
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
        raise OSError(f"{path}: cannot be written ({error}); the disk has {free / 1e6:.0f} MB left.") from error


def _empty(path: str, shape: tuple[int, int, int]):
    """Make the array of Blosc2 for a series of ``shape`` (slices, H, W)."""
    blosc2 = import_blosc2()
    _, height, width = shape
    # Of the codecs and filters measured, the best compression that is fast to read; docs/loading.md.
    how = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "filters": [blosc2.Filter.BITSHUFFLE], "filters_meta": [0]}
    return blosc2.empty(
        shape,
        dtype=np.uint16,
        urlpath=path,
        mode="w",
        contiguous=True,
        chunks=(1, height, width),
        blocks=(1, max(1, min(height, 32768 // width)), width),  # about 64 kB, which stays in the second-level cache
        cparams=blosc2.CParams(**how, nthreads=1),
    )


class PackedSeries:
    """Slices of a packed file, which is opened here and closed with the object.

    Attributes:
        numbers: those of the slices in the file, in order.

    Raises:
        UnreadableSlice: if the file is damaged, of another kind, or that of another series.
        OSError: if it cannot be read at all, as on a failing disk.
        ImportError: if Blosc2 is not installed.
    """

    def __init__(self, path: str):
        blosc2 = import_blosc2()
        self._path = path
        with open(path, "rb"):  # raises what Blosc2 does not say of a file that it may not read
            pass
        try:
            self._array = blosc2.open(path, mode="r", deserialize="safe", dparams=blosc2.DParams(nthreads=1))
            self.numbers: list[int] = list(self._array.schunk.vlmeta["numbers"])
            series = self._array.schunk.vlmeta["series"]
            self._checksums: list[int] = self._array.schunk.vlmeta["crc32"]
            count, is_array = len(self.numbers), self._array.dtype == np.uint16 and self._array.ndim == 3
            is_whole = is_array and len(self._array) == len(self._checksums) == count
            valid = is_whole and all(type(number) is int for number in [*self.numbers, *self._checksums])
        except _DAMAGE as error:
            raise self._damaged(error) from error
        if not valid:
            raise self._damaged(f"an array of {self._array.dtype}, {self._array.shape}")
        if series != _series_name(path):
            raise self._damaged(f"that of series {series}")
        self._index = {number: k for k, number in enumerate(self.numbers)}

    def _damaged(self, found) -> UnreadableSlice:
        return UnreadableSlice(
            f"{self._path}: expected a packed series, got a damaged file ({found}). Run "
            "datasets/prepare_deeplesion.py --pack again, or remove it."
        )

    def checksum(self, number: int) -> int:
        """Give the CRC-32 that a slice was written with."""
        return self._checksums[self._index[number]]

    def path(self, number: int) -> str:
        """Say where a slice is found, for messages."""
        return f"{self._path}, slice {number}"

    def read(self, number: int, verify: bool = False) -> np.ndarray:
        """Read a slice, (H, W) uint16 as stored.

        Args:
            number: of the slice.
            verify: whether to compare the slice with its checksum, which takes about as long as reading it.

        Raises:
            FileNotFoundError: if there is no such slice in the file.
            UnreadableSlice: if the file is damaged.
        """
        if number not in self._index:
            raise FileNotFoundError(f"{self.path(number)}: no such slice in the packed series.")
        k = self._index[number]
        try:
            stored = self._array[k]
        except _DAMAGE as error:
            raise self._damaged(error) from error
        if verify and zlib.crc32(stored) != self._checksums[k]:
            raise self._damaged(f"slice {number} with another checksum than it was written with")
        return stored


def _series_name(path: str) -> str:
    return os.path.basename(path).removesuffix(".b2nd")


def import_blosc2():
    """Import Blosc2; the ImportError says what to install. Versions before 4.14.1 run code that a file holds."""
    try:
        import blosc2
        from blosc2 import UnsafeDeserializationError  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{PACKED_DIR} is read and written by Blosc2 from version 4.14.1 on, which is not installed ({error}): "
            "pip install 'blosc2>=4.14.1', which needs Python 3.11. Without the folder the PNG files are read."
        ) from error
    return blosc2
