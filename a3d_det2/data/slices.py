"""Slices of a CT series: the key slice and its neighbours, resampled along z, and windowed."""

import bisect
import logging
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from ..files import slice_number
from .once import LogOnce
from .packed import packed_path
from .png import HU_OFFSET, UnreadableSlice, read_png, to_hu
from .series import NumberedFiles, PngSeries, open_series

RESAMPLING = ("linear", "published", "thin", "none")
SMALLEST_INTERVAL = 1e-9  # mm; what is divided by it stays finite


def read_slice(path: str) -> np.ndarray:
    """Read one 16-bit PNG slice.

    Returns:
        (H, W) float32, in Hounsfield units (HU).

    Raises:
        FileNotFoundError: if there is no such file.
        UnreadableSlice: if it is not a complete 16-bit grey PNG; a ValueError.
    """
    return to_hu(read_png(path))


def is_interval(value: float) -> bool:
    """Whether a number can be the distance between slices, in mm: finite, and not so small that it must be an error."""
    return SMALLEST_INTERVAL <= value < math.inf


@cache
def _log_once() -> LogOnce:
    return LogOnce(logging.getLogger(__name__))


def load_slice_stack(
    path: str,
    num_slices: int,
    slice_interval: float,
    target_interval: float = 2.0,
    resampling: str = "linear",
    *,
    slice_range: tuple[int, int] | None = None,
    packed: bool = True,
    on_damage: Callable[[str, str], None] | None = None,
    hu_offset: float = HU_OFFSET,
    number_pattern: str | None = None,
) -> np.ndarray:
    """Load the key slice and its neighbours, resampled to a common distance.

    Slice i of the result lies (i - D // 2) * target_interval mm from the key slice, in the direction of increasing
    slice number. Where a slice is not on disk (end of the series, gap) or damaged (unreadable, not 16-bit, of another
    size), the next one towards the key slice takes its place. Each file is decoded once.

    Args:
        path: the key slice, ``.../109.png``; its neighbours are in the same folder.
        num_slices: D, odd.
        slice_interval: distance between the slices on disk in mm. Where it is none, see :func:`is_interval`, the key
            slice is repeated D times, and one warning is logged; none by the workers of a data loader, as
            :func:`load_deeplesion` has warned before.
        target_interval: distance between the slices of the result in mm.
        resampling: how slices between those on disk are made:
            "linear" interpolates each between the two around it, by its own fraction.
            "published" uses the first neighbour's fraction for all that are not on a slice, as the code published with
            the paper does; at 5 mm the slices 2 mm and 4 mm away are then the same.
            "thin" resamples (linearly) only series with slices closer than ``target_interval`` and takes the slices of
            the others as they are, for AlignShift, which does the rest itself.
            "none" takes the slices as they are.
        slice_range: first and last slice of the series; one within that is not on disk then counts as damaged.
        packed: whether to read ``Images_packed`` beside the folder of the series where it is there; see :mod:`.packed`.
        on_damage: called with path and message for each damaged file that was to be read; None logs one warning for
            each file in a process.
        hu_offset: what was added to the HU in the files.
        number_pattern: see :class:`.NumberedFiles`; None is the layout of DeepLesion, with names that are numbers.

    Returns:
        (D, H, W) float32, in HU.

    Raises:
        FileNotFoundError: if the key slice does not exist.
        UnreadableSlice: if it is damaged; a ValueError.
        ValueError: if ``num_slices`` is even, ``target_interval`` is not positive or ``resampling`` is unknown.
    """
    _check_arguments(num_slices, target_interval, resampling)
    report = on_damage or _log_once()
    neighbourhood = _Neighbourhood(path, slice_range, packed, report, hu_offset, number_pattern)
    stack = np.empty((num_slices, *neighbourhood.key_slice.shape), dtype=np.float32)
    if not is_interval(slice_interval):
        if multiprocessing.parent_process() is None:
            _log_once()(
                "slice interval",
                f"{path}: expected a positive slice interval in mm, got {slice_interval}. Its key slice is repeated in "
                "place of the neighbours; further such series are not reported.",
            )
        stack[:] = to_hu(neighbourhood.key_slice, offset=hu_offset)
        return stack
    for image, (near, far, fraction) in zip(
        stack, stack_positions(num_slices // 2, target_interval / slice_interval, resampling), strict=True
    ):
        neighbourhood.interpolate(near, far, fraction, out=image)
    return stack


def resample_stack(
    slices: np.ndarray,
    key: int,
    num_slices: int,
    slice_interval: float,
    target_interval: float = 2.0,
    resampling: str = "linear",
) -> np.ndarray:
    """Resample slices that are in memory, as :func:`load_slice_stack` does those on disk.

    Args:
        slices: (S, H, W) in HU, from head to feet; beyond the ends the end slices are repeated.
        key: which of them is the key slice.
        num_slices, slice_interval, target_interval, resampling: see :func:`load_slice_stack`.

    Returns:
        (D, H, W) float32, in HU.

    Raises:
        ValueError: if ``slices`` is not (S, H, W) or has no slice ``key``; see also :func:`load_slice_stack`.
    """
    slices = np.asarray(slices)
    if slices.ndim != 3 or not 0 <= key < len(slices):
        raise ValueError(f"Expected slices (S, H, W) and one of them as key, got {slices.shape} and {key}.")
    _check_arguments(num_slices, target_interval, resampling)
    if not is_interval(slice_interval):
        return np.repeat(slices[key : key + 1].astype(np.float32), num_slices, axis=0)
    stack = np.empty((num_slices, *slices.shape[1:]), dtype=np.float32)
    for out, (near, far, fraction) in zip(
        stack, stack_positions(num_slices // 2, target_interval / slice_interval, resampling), strict=True
    ):
        low, high = (slices[min(max(key + offset, 0), len(slices) - 1)] for offset in (near, far))
        np.multiply(low, np.float32(1 - fraction), out=out, dtype=np.float32)
        if fraction:
            out += high * np.float32(fraction)
    return stack


def _check_arguments(num_slices: int, target_interval: float, resampling: str) -> None:
    if num_slices < 1 or num_slices % 2 == 0:
        raise ValueError(f"num_slices must be odd, so that the key slice is the middle one. Got {num_slices} instead!")
    if not (math.isfinite(target_interval) and target_interval > 0):
        raise ValueError(f"target_interval must be a positive number of mm. Got {target_interval} instead!")
    if resampling not in RESAMPLING:
        raise ValueError(f"Unknown resampling {resampling!r}. Choose one of {', '.join(RESAMPLING)}.")


def stack_positions(half: int, ratio: float, resampling: str) -> Iterator[tuple[int, int, float]]:
    """Find between which slices on disk each slice of a stack lies, by their numbers relative to the key slice.

    Args:
        half: D // 2.
        ratio: distance in the stack over that on disk.
        resampling: see :func:`load_slice_stack`.

    Yields:
        (near, far, fraction) for each slice of the stack: it is near * (1 - fraction) + far * fraction.
    """
    ratio = {"none": 1.0, "thin": max(ratio, 1.0)}.get(resampling, ratio)
    for i in range(-half, half + 1):
        distance = round(abs(i) * ratio, 6)  # 2 mm / 0.4 mm must be slice 5, not a breath of slice 4
        near = int(distance)
        fraction = distance - near
        if resampling == "published" and fraction:
            fraction = round(ratio, 6) % 1
        sign = -1 if i < 0 else 1
        yield sign * near, sign * (near + 1), fraction


class _Neighbourhood:
    """The slices beside a key slice, (H, W) uint16 by their number relative to it; each is decoded once."""

    def __init__(
        self,
        key_path: str,
        slice_range: tuple[int, int] | None,
        packed: bool,
        on_damage: Callable,
        hu_offset: float,
        number_pattern: str | None,
    ):
        self._slice_range = range(slice_range[0], slice_range[1] + 1) if slice_range else range(0)
        self._on_damage, self._hu_offset = on_damage, hu_offset
        if number_pattern is None:
            self._open(key_path, packed)
        else:
            self._series = NumberedFiles(key_path, number_pattern)
            self._key = self._series.key
            if len(self._series.numbers) <= 1:
                on_damage(
                    key_path,
                    f"{key_path}: no other slice lies beside it whose name differs in the number {str(self._key)!r} "
                    f"alone, as {number_pattern!r} finds it; it is repeated in their place.",
                )
        in_pack = not isinstance(self._series, PngSeries) and self._key in self._series.numbers
        self.key_slice = self._series.read(self._key) if in_pack else read_png(key_path)
        self._images = {0: self.key_slice}
        self._offsets = sorted({0, *(number - self._key for number in self._series.numbers)})
        self._damaged: set[int] = set()

    def _open(self, key_path: str, packed: bool) -> None:
        """Open a series in DeepLesion's layout."""
        folder = os.path.dirname(key_path)
        self._key = slice_number(key_path)
        if self._key is None:
            raise ValueError(f"{key_path}: expected a slice number as the file name, such as 109.png.")
        try:
            self._series = open_series(folder, packed)
        except UnreadableSlice as error:
            if not os.path.isdir(folder):
                raise
            self._on_damage(packed_path(folder), f"{error} The PNG files are read instead.")
            self._series = PngSeries(folder)

    def interpolate(self, near: int, far: int, fraction: float, out: np.ndarray) -> None:
        """Write near * (1 - fraction) + far * fraction, in HU, into ``out``, (H, W) float32."""
        low = self._nearest(near)
        high = self._nearest(far) if fraction else low
        to_hu(low, out, self._hu_offset)
        if high is not low:
            out *= np.float32(1 - fraction)
            weighted = to_hu(high, offset=self._hu_offset)
            weighted *= np.float32(fraction)
            out += weighted

    def _nearest(self, offset: int) -> np.ndarray:
        """Read a slice, or where it is not to be had, the next one towards the key slice."""
        while True:
            found = self._nearest_on_disk(offset)
            if found != offset:
                self._report_missing(offset)
            if found not in self._images:
                try:
                    self._images[found] = self._read(found)
                except (FileNotFoundError, UnreadableSlice) as error:
                    self._offsets.remove(found)
                    self._damaged.add(found)
                    self._on_damage(
                        self._series.path(self._key + found),
                        f"{error} The next slice towards the key slice takes its place.",
                    )
                    continue
            return self._images[found]

    def _nearest_on_disk(self, offset: int) -> int:
        if offset > 0:
            return self._offsets[bisect.bisect_right(self._offsets, offset) - 1]
        return self._offsets[bisect.bisect_left(self._offsets, offset)]

    def _read(self, offset: int) -> np.ndarray:
        number = self._key + offset
        stored = self._series.read(number)
        if stored.shape != self.key_slice.shape:
            raise UnreadableSlice(
                f"{self._series.path(number)}: expected the size of the key slice {self._key}, "
                f"{self.key_slice.shape}, got {stored.shape}."
            )
        return stored

    def _report_missing(self, offset: int) -> None:
        number = self._key + offset
        if offset not in self._damaged and number in self._slice_range:
            path = self._series.path(number)
            self._on_damage(
                path,
                f"{path}: no such slice, though the series has {self._slice_range[0]} to {self._slice_range[-1]}. The "
                "next slice towards the key slice takes its place.",
            )


def window_hu(hu: np.ndarray, window: tuple[float, float] = (-1024, 2050), out: np.ndarray | None = None) -> np.ndarray:
    """Clip to the HU window and map it linearly to [-50, 205], the range of the published models (Sec. 3.1).

    Args:
        hu: any shape, in HU.
        window: lowest and highest HU, lowest first.
        out: float32 of the same shape to write into; None makes a new array.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: if ``window`` is empty.
    """
    low, high = window
    if not low < high:
        raise ValueError(f"The HU window must be (low, high) with low < high. Got {tuple(window)} instead!")
    # In place: a stack is several MB, and new memory costs more than the arithmetic.
    scaled = np.clip(hu, low, high, out=out, dtype=np.float32)
    scaled -= np.float32(low)
    scaled *= np.float32(255.0 / (high - low))
    scaled -= np.float32(50.0)
    return scaled
