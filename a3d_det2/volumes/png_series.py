"""Series of DeepLesion: a folder of 16-bit PNG slices, whose distances another file or the caller knows."""

import os
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..data.dl_info import Row, read_rows
from ..data.png import UnreadableSlice, to_hu
from ..data.series import PngSeries
from .volume import UnreadableVolume, Volume, gap_notes, size_problem, to_int16

CSV = "DL_info.csv"


@lru_cache(maxsize=4)
def _first_rows(path: str, modified: float) -> dict[str, Row]:
    """Series -> its first row."""
    rows: dict[str, Row] = {}
    for row in read_rows(path):
        rows.setdefault(row.image_id.rpartition("_")[0], row)
    return rows


class PngFolder:
    """A folder of slices, ``NNN.png``, with numbers that increase from head to feet.

    Args:
        folder: of the series.
        spacing: between columns, rows and slices in mm; None takes that of the series in a DL_info.csv, in one of the
            two folders above it.
    """

    def __init__(self, folder: str, spacing: Sequence[float] | None = None):
        self.folder, self.series = folder, PngSeries(folder)
        self._spacing = spacing

    @property
    def name(self) -> str:
        return os.path.basename(os.path.abspath(self.folder))

    def spacing(self) -> tuple[float, float, float]:
        """Distance between columns, rows and slices in mm.

        Raises:
            UnreadableVolume: if nothing says it, or what says it is no distance.
        """
        spacing = self._spacing or self._listed_spacing()
        if len(spacing) != 3 or not all(0 < length < np.inf for length in spacing):
            raise UnreadableVolume(
                f"{self.folder}: expected three distances in mm, of columns, rows and slices, got {tuple(spacing)}"
            )
        return tuple(spacing)

    def _listed_spacing(self) -> tuple[float, ...]:
        above = os.path.dirname(os.path.abspath(self.folder))
        for place in (above, os.path.dirname(above)):
            path = os.path.join(place, CSV)
            if os.path.isfile(path) and (row := _first_rows(path, os.path.getmtime(path)).get(self.name)):
                record = row.key_slice("")
                return *record["spacing"], record["slice_interval"]
        raise UnreadableVolume(
            f"{self.folder}: expected the distances of columns, rows and slices in mm, as --spacing X Y Z or in a "
            f"{CSV} above it with a row of this series, got neither"
        )

    def read(self) -> Volume:
        """
        Raises:
            UnreadableVolume: if a slice is damaged or of another size, or see :meth:`spacing`.
        """
        x, y, z = self.spacing()
        numbers = self.series.numbers
        if not numbers:
            raise UnreadableVolume(f"{self.folder}: expected slices as 16-bit PNG, NNN.png, got none")
        hu = None
        for k, number in enumerate(numbers):
            try:
                stored = self.series.read(number)
            except (OSError, UnreadableSlice) as error:
                raise UnreadableVolume(str(error)) from error
            if hu is None:
                if problem := size_problem(*stored.shape, len(numbers), (x, y)):
                    raise UnreadableVolume(f"{self.folder}: {problem}")
                hu = np.empty((len(numbers), *stored.shape), dtype=np.int16)
            if stored.shape != hu.shape[1:]:
                path = self.series.path(number)
                raise UnreadableVolume(f"{path}: expected {hu.shape[1:]} pixels as the others, got {stored.shape}")
            hu[k] = to_int16(to_hu(stored))
        positions = (np.array(numbers) - numbers[0]) * float(z)
        affine = np.diag([x, y, -positions[-1] / (len(numbers) - 1), 1.0])
        offsets = np.zeros((len(numbers), 2))
        identifiers = {"series": self.name}
        return Volume(hu, affine, positions, offsets, self.name, gap_notes(positions, z), identifiers=identifiers)
