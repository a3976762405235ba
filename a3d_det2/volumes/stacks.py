"""Stacks of windowed slices around each key slice of a volume; a slice is resampled, resized and windowed once."""

from collections.abc import Iterator

import cv2
import numpy as np

from ..data.slices import stack_positions, window_hu
from .volume import Volume

EVEN = 1e-3  # of the interval, by which evenly spaced slices may differ from it
SNAP = 1e-4  # of the distance between two slices, from which on a slice between them is one of them


class SliceStacks:
    """Makes the stacks that :class:`.SampleLoader` would make of the key slices, if they were files.

    Where the slices are unevenly spaced they are interpolated by their positions. With a tilted gantry the slices of a
    stack are shifted in plane, so that what lies above each other in the patient does in the stack.

    Args:
        volume: to take slices of.
        num_slices: D, odd.
        slice_interval: distance in mm between the slices of a stack.
        hu_window: see :func:`.window_hu`.
        resampling: see :func:`.load_slice_stack`.
        size: (height, width) that slices are resized to, bilinearly; None keeps theirs.
        window_first: whether to window before resizing, rather than after.
    """

    def __init__(
        self,
        volume: Volume,
        *,
        num_slices: int,
        slice_interval: float,
        hu_window: tuple[float, float],
        resampling: str = "linear",
        size: tuple[int, int] | None = None,
        window_first: bool = False,
    ):
        self.volume, self.size = volume, size or volume.hu.shape[1:]
        self._half, self._target, self._resampling = num_slices // 2, slice_interval, resampling
        self._window, self._window_first = hu_window, window_first
        self._air = float(window_hu(np.float32(hu_window[0]), hu_window))
        self._interval = volume.slice_interval
        steps = np.diff(volume.positions)
        self._is_even = bool((np.abs(steps - self._interval) <= EVEN * self._interval).all())
        self._is_tilted = bool(np.abs(np.diff(volume.offsets, axis=0)).max(initial=0) > SNAP)
        self._slices: dict[tuple[int, int, float], np.ndarray] = {}

    def stack(self, key: int, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """Make the stack of a key slice, or the part of it in ``rows`` and ``columns``: (D, h, w) float32, windowed.

        Slices are kept for the stacks that follow, so take the key slices from head to feet.
        """
        places = list(self._places(key))
        lowest = min(min(low, high) for low, high, _ in places)
        for old in [old for old in self._slices if max(old[:2]) < lowest]:
            del self._slices[old]
        images = []
        for place in places:
            if place not in self._slices:
                self._slices[place] = self._make(*place)
            image = self._slices[place]
            if self._is_tilted:
                image = self._shifted(image, place[0], key)
            images.append(image[rows, columns])
        return np.stack(images)

    def _places(self, key: int) -> Iterator[tuple[int, int, float]]:
        """(low, high, fraction) for each slice of a stack: it is low * (1 - fraction) + high * fraction."""
        last = len(self.volume.positions) - 1
        for near, far, fraction in stack_positions(self._half, self._target / self._interval, self._resampling):
            if self._is_even:
                low, high = (min(max(key + offset, 0), last) for offset in (near, far))
                yield (low, high, fraction) if fraction and low != high else (low, low, 0.0)
            else:
                yield self._by_position(key, (near + (far - near) * fraction) * self._interval)

    def _by_position(self, key: int, distance: float) -> tuple[int, int, float]:
        positions = self.volume.positions
        place = np.clip(positions[key] + distance, positions[0], positions[-1])
        high = int(np.clip(np.searchsorted(positions, place), 1, len(positions) - 1))
        low = high - 1
        gap = positions[high] - positions[low]
        fraction = float((place - positions[low]) / gap)
        is_between = SNAP <= fraction <= 1 - SNAP
        if is_between and gap <= self.volume.widest_gap:
            return low, high, round(fraction, 6)
        # In a gap that is too wide the one on the side of the key slice, and otherwise the nearer one.
        nearest = low if (distance >= 0 if is_between else fraction < 0.5) else high
        return nearest, nearest, 0.0

    def _make(self, low: int, high: int, fraction: float) -> np.ndarray:
        hu = self.volume.hu[low].astype(np.float32)
        if fraction:
            other = self.volume.hu[high].astype(np.float32)
            if self._is_tilted:
                other = self._warp(other, high, low, self.volume.hu.shape[1:], self._window[0])
            hu *= np.float32(1 - fraction)
            hu += other * np.float32(fraction)
        if self._window_first:
            window_hu(hu, self._window, out=hu)
        if hu.shape != self.size:
            hu = cv2.resize(hu, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        return hu if self._window_first else window_hu(hu, self._window, out=hu)

    def _shifted(self, image: np.ndarray, index: int, key: int) -> np.ndarray:
        return self._warp(image, index, key, self.size, self._air)

    def _warp(self, image: np.ndarray, index: int, onto: int, size: tuple[int, int], fill: float) -> np.ndarray:
        """Move a slice to where its pixels lie in another one, along the normal."""
        scale = np.array(size[::-1]) / self.volume.hu.shape[:0:-1]
        x, y = (self.volume.offsets[index] - self.volume.offsets[onto]) / self.volume.spacing * scale
        if abs(x) < SNAP and abs(y) < SNAP:
            return image
        matrix = np.array([[1, 0, x], [0, 1, y]])
        return cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderValue=fill)
