"""Slices of a CT series in DeepLesion's layout: reading, neighbours, resampling along z, windowing."""

import bisect
import logging
import math
import multiprocessing
import os

import numpy as np
from PIL import Image, UnidentifiedImageError

HU_OFFSET = 32768  # stored value = HU + offset, as unsigned 16 bit
RESAMPLING = ("linear", "thin")


def read_slice(path: str) -> np.ndarray:
    """Read one 16-bit PNG slice.

    Returns:
        (H, W) float32, in Hounsfield units (HU).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a complete 16-bit grey PNG.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, stored = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such slice. Expected DeepLesion's layout, Images_png/PPPPPP_SS_RR/NNN.png."
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: expected a complete 16-bit PNG, got an unreadable file ({error}).") from error
    if not (mode.startswith("I;16") or mode == "I"):  # "I" is what Pillow before 11 makes of a 16-bit grey PNG
        raise ValueError(
            f"{path}: expected a 16-bit grey PNG with HU + {HU_OFFSET}, got an image of mode {mode}. "
            "(The 8-bit Key_slices.zip of DeepLesion is windowed and holds no HU.)"
        )
    return stored.astype(np.float32) - HU_OFFSET


def load_slice_stack(
    path: str,
    num_slices: int,
    slice_interval: float,
    target_interval: float = 2.0,
    resampling: str = "linear",
) -> np.ndarray:
    """Load the key slice and its neighbours, resampled to a common distance.

    Slice i of the result lies (i - D // 2) * target_interval mm from the key slice, in the direction of increasing
    slice number. Each position is interpolated linearly between the two slices on disk around it, by its own fraction.
    Where a slice is not on disk (end of the series, gap), the next one towards the key slice takes its place.

    Args:
        path: the key slice, ``.../109.png``; its neighbours are in the same folder.
        num_slices: D, odd.
        slice_interval: distance between the slices on disk in mm. Where it is NaN, infinite, zero or negative, the
            key slice is repeated D times, and one warning is logged; none by the workers of a data loader, as
            :func:`load_deeplesion` has warned before.
        target_interval: distance between the slices of the result in mm.
        resampling: "linear", or "thin", which resamples only series with slices closer than ``target_interval`` and
            takes the slices of the others as they are, for AlignShift, which does the rest itself.

    Returns:
        (D, H, W) float32, in HU.

    Raises:
        FileNotFoundError: if the key slice does not exist.
        ValueError: if a slice is unreadable or not 16-bit, two differ in size, ``num_slices`` is even,
            ``target_interval`` is not positive or ``resampling`` is unknown.
    """
    if num_slices < 1 or num_slices % 2 == 0:
        raise ValueError(f"num_slices must be odd, so that the key slice is the middle one. Got {num_slices} instead!")
    if not (math.isfinite(target_interval) and target_interval > 0):
        raise ValueError(f"target_interval must be a positive number of mm. Got {target_interval} instead!")
    if resampling not in RESAMPLING:
        raise ValueError(f"Unknown resampling {resampling!r}. Choose one of {', '.join(RESAMPLING)}.")
    series = _Series(path)
    half = num_slices // 2
    if not (math.isfinite(slice_interval) and slice_interval > 0):
        _warn_bad_interval(path, slice_interval)
        return np.repeat(series.read(0)[None], num_slices, axis=0)
    if resampling == "thin":
        target_interval = max(target_interval, slice_interval)
    steps = np.arange(-half, half + 1) * (target_interval / slice_interval)
    return np.stack([series.interpolate(step) for step in steps])


class _Series:
    """The slices beside a key slice, by their number relative to it; each file is decoded once."""

    def __init__(self, key_path: str):
        self._folder, key_name = os.path.split(key_path)
        stem, self._extension = os.path.splitext(key_name)
        if not stem.isdigit():
            raise ValueError(f"{key_path}: expected a slice number as the file name, such as 109.png.")
        self._key_index, self._digits = int(stem), len(stem)
        self._key_path = key_path
        self._cache: dict[int, np.ndarray] = {}
        self._shape = self.read(0).shape
        names = (os.path.splitext(name) for name in os.listdir(self._folder or "."))
        self._on_disk = sorted(
            int(stem) - self._key_index
            for stem, extension in names
            if extension == self._extension and stem.isdigit() and stem == f"{int(stem):0{self._digits}d}"
        )

    def _path(self, offset: int) -> str:
        return os.path.join(self._folder, f"{self._key_index + offset:0{self._digits}d}{self._extension}")

    def _nearest_on_disk(self, offset: int) -> int:
        """The slice itself, or where it is not on disk, the next one towards the key slice."""
        if offset > 0:
            return self._on_disk[bisect.bisect_right(self._on_disk, offset) - 1]
        return self._on_disk[bisect.bisect_left(self._on_disk, offset)]

    def read(self, offset: int) -> np.ndarray:
        if offset not in self._cache:
            self._cache[offset] = read_slice(self._path(offset))
            if offset != 0 and self._cache[offset].shape != self._shape:
                raise ValueError(
                    f"{self._path(offset)}: expected the size of the key slice {self._key_path}, "
                    f"{self._shape}, got {self._cache[offset].shape}."
                )
        return self._cache[offset]

    def interpolate(self, step: float) -> np.ndarray:
        """The image ``step`` slices from the key slice; ``step`` need not be whole."""
        step = round(step, 6)  # 2 mm / 0.4 mm must be slice 5, not a breath of slice 4
        near, fraction = int(step), abs(step - int(step))
        low = self._nearest_on_disk(near)
        if fraction == 0:
            return self.read(low)
        high = self._nearest_on_disk(near + (1 if step > 0 else -1))
        if low == high:
            return self.read(low)
        return self.read(low) * np.float32(1 - fraction) + self.read(high) * np.float32(fraction)


_bad_interval_reported = False


def _warn_bad_interval(path: str, slice_interval: float) -> None:
    global _bad_interval_reported
    if not _bad_interval_reported and multiprocessing.parent_process() is None:
        _bad_interval_reported = True
        logging.getLogger(__name__).warning(
            f"{path}: expected a positive slice interval in mm, got {slice_interval}. Its key slice is repeated in "
            "place of the neighbours; further such series are not reported."
        )


def window_hu(hu: np.ndarray, window: tuple[float, float] = (-1024, 2050)) -> np.ndarray:
    """Clip to the HU window and map it linearly to [-50, 205], the range of the published models (Sec. 3.1).

    Args:
        hu: any shape, in HU.
        window: lowest and highest HU, lowest first.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: if ``window`` is empty.
    """
    low, high = window
    if not low < high:
        raise ValueError(f"The HU window must be (low, high) with low < high. Got {tuple(window)} instead!")
    scaled = (np.clip(hu, low, high) - low) * (255.0 / (high - low)) - 50.0
    return scaled.astype(np.float32)
