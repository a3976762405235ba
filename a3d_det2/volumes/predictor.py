"""Every slice of a volume through a detector of key slices."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .body import body_boxes
from .lesion import Detection, Lesion, Mask
from .linking import LinkingRule, link_detections
from .measurement import measure_lesions
from .scale import network_size
from .stacks import SliceStacks
from .volume import UnreadableVolume, Volume

MARGIN = 32  # px of the image that the model sees, kept around the body
ALIGNMENT = 32  # px; a part of a slice begins and ends at multiples of it, where the grids of all maps do
AHEAD = 2  # batches made while the model is busy


class Found(NamedTuple):
    """What a detector found on a key slice.

    Attributes:
        boxes: (n, 4) XYXY, in pixels of the image it was given.
        scores: (n,).
        classes: (n,) int, from 0 on.
        masks: (n, H, W) bool, or None from a detector without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None


# Images (N, D, H, W) float32, windowed, and the distance between the volume's slices in mm -> Found for each.
Detector = Callable[[Tensor, float], Sequence[Found]]


class _Batch(NamedTuple):
    keys: list[int]
    images: Tensor  # (N, D, h, w)
    left: int  # of the part in the whole image, px
    top: int


class VolumePredictor:
    """Finds lesions in volumes with a detector of key slices.

    1. Choose the key slices: all, or one every ``step`` mm; none that shows air alone.
    2. Make the stack of each, see :class:`.SliceStacks`, of the part of the slice that the body covers, while the
       detector is busy with those before.
    3. Put boxes and masks where they are in the volume.
    4. Link them to lesions, and measure these.

    Args:
        detector: finds lesions on key slices.
        num_slices, slice_interval, hu_window, resampling, window_first: of its images, see :class:`.SliceStacks`.
        min_size, max_size: lengths of the sides in pixels that it was trained with, see :func:`.network_size`.
        batch_size: key slices that it gets at once.
        step: mm between key slices; 0 takes every slice.
        refine: with a step, whether to take also every slice that is less than a step away from one on which something
            was found.
        crop_to_body: False gives it whole slices, and those of air as well.
        min_score: detections with lower scores are left out.
        rule: how detections are linked.
        box_margin: pixels, of the image that the detector sees, between a lesion and its box, see :mod:`.measurement`.
        progress: whether to show a bar.

    Raises:
        ValueError: if ``batch_size``, ``step``, ``min_score`` or ``box_margin`` cannot be.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        num_slices: int,
        slice_interval: float,
        hu_window: tuple[float, float],
        resampling: str = "linear",
        window_first: bool = False,
        min_size: int = 0,
        max_size: int = 0,
        batch_size: int = 1,
        step: float = 0.0,
        refine: bool = False,
        crop_to_body: bool = True,
        min_score: float = 0.1,
        rule: LinkingRule | None = None,
        box_margin: float = 0.0,
        progress: bool = True,
    ):
        if batch_size < 1:
            raise ValueError(f"Expected a batch_size from 1 on, got {batch_size}.")
        if not (step >= 0 and math.isfinite(step)):
            raise ValueError(f"Expected a step in mm from 0 on, got {step}.")
        if not 0 <= min_score <= 1:
            raise ValueError(f"Expected a min_score from 0 to 1, got {min_score}.")
        if not (box_margin >= 0 and math.isfinite(box_margin)):
            raise ValueError(f"Expected a box_margin in pixels from 0 on, got {box_margin}.")
        self.detector = detector
        self._stacks = {
            "num_slices": num_slices,
            "slice_interval": slice_interval,
            "hu_window": hu_window,
            "resampling": resampling,
            "window_first": window_first,
        }
        self.min_size, self.max_size, self.batch_size, self.step = min_size, max_size, batch_size, step
        self.refine, self.crop_to_body, self.min_score = refine, crop_to_body, min_score
        self.rule, self.box_margin, self.progress = rule or LinkingRule(), box_margin, progress

    def predict(self, volume: Volume) -> list[Lesion]:
        """Find the lesions of a volume, the one with the highest score first.

        Raises:
            UnreadableVolume: see :meth:`detect`.
        """
        linked = link_detections(self.detect(volume), volume.positions, self.rule, self.key_interval(volume))
        return measure_lesions(linked, volume, self.margin(volume))

    def detect(self, volume: Volume, keys: Sequence[int] | None = None) -> list[Detection]:
        """Find what the detector finds, slice by slice.

        Args:
            keys: indices of the key slices, in order; None is those of :meth:`predict`.

        Raises:
            UnreadableVolume: if there is no body on any slice.
        """
        bodies = body_boxes(volume) if self.crop_to_body else None
        if bodies is not None and not bodies.any():
            raise UnreadableVolume(f"expected a body in air, in HU, got {volume.hu.min()} to {volume.hu.max()} HU")
        if keys is not None:
            return self._detect(volume, list(keys), bodies)
        coarse = self._key_slices(volume)
        found = self._detect(volume, coarse, bodies)
        if self.refine and len(coarse) < len(volume.positions):
            places = volume.positions[sorted({one.index for one in found})]
            near = np.abs(volume.positions[:, None] - places[None]).min(axis=1, initial=np.inf) < self.step
            near[coarse] = False
            if near.any():
                found += self._detect(volume, np.flatnonzero(near).tolist(), bodies)
        return found

    def _detect(self, volume: Volume, keys: list[int], bodies: np.ndarray | None) -> list[Detection]:
        size, parts = self.network_size(volume), None
        if bodies is not None:
            keys = [key for key in keys if bodies[key].any()]
            parts = self._parts(bodies, volume.hu.shape[1:], size)
        batches = [keys[i : i + self.batch_size] for i in range(0, len(keys), self.batch_size)]
        stacks = SliceStacks(volume, size=size, **self._stacks)
        scale = np.array(volume.hu.shape[:0:-1]) / size[::-1]  # of x and y, from the image to the volume
        detections: list[Detection] = []
        with tqdm(total=len(keys), desc="slices", unit="slice", disable=not self.progress) as progress:
            for batch in self._ahead(stacks, batches, parts, size):
                for key, found in zip(batch.keys, self.detector(batch.images, volume.slice_interval), strict=True):
                    detections += self._placed(key, found, batch, scale, volume.hu.shape[1:])
                progress.update(len(batch.keys))
        return detections

    def network_size(self, volume: Volume) -> tuple[int, int]:
        """(height, width) of the image that the detector sees of a slice of the volume."""
        return network_size(volume.hu.shape[1:], volume.spacing[::-1], self.min_size, self.max_size)

    def margin(self, volume: Volume) -> np.ndarray:
        """(2,), ``box_margin`` in pixels of the volume, in x and y."""
        return self.box_margin * np.array(volume.hu.shape[:0:-1]) / self.network_size(volume)[::-1]

    def key_interval(self, volume: Volume) -> float:
        """mm between key slices, for :func:`.link_detections`."""
        return volume.slice_interval if self.refine else max(self.step, volume.slice_interval)

    def _key_slices(self, volume: Volume) -> list[int]:
        positions = volume.positions
        if self.step <= volume.slice_interval:
            return list(range(len(positions)))
        places = np.arange(positions[0], positions[-1] + self.step / 2, self.step)
        return sorted({int(np.abs(positions - place).argmin()) for place in places})

    def _parts(self, bodies: np.ndarray, shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """What the detector sees of each slice: (D, 4) int, left, top, right, bottom in pixels of its image."""
        scale = np.tile(np.array(size[::-1]) / shape[::-1], 2)
        parts = bodies * scale + [-MARGIN, -MARGIN, MARGIN, MARGIN]
        parts[:, :2] = np.floor(parts[:, :2] / ALIGNMENT)
        parts[:, 2:] = np.ceil(parts[:, 2:] / ALIGNMENT)
        return np.clip(parts.astype(int) * ALIGNMENT, 0, np.tile(size[::-1], 2))

    def _ahead(self, stacks: SliceStacks, batches: list[list[int]], parts, size) -> Iterator[_Batch]:
        """Make batches in a thread, a few before they are asked for."""

        def make(keys: list[int]) -> _Batch:
            left, top, right, bottom = 0, 0, size[1], size[0]
            if parts is not None:
                (left, top), (right, bottom) = parts[keys, :2].min(axis=0), parts[keys, 2:].max(axis=0)
            images = np.stack([stacks.stack(key, slice(top, bottom), slice(left, right)) for key in keys])
            return _Batch(keys, torch.from_numpy(images), int(left), int(top))

        with ThreadPoolExecutor(1) as pool:
            waiting: deque = deque()
            for keys in batches:
                waiting.append(pool.submit(make, keys))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _placed(
        self, key: int, found: Found, batch: _Batch, scale: np.ndarray, shape: tuple[int, int]
    ) -> Iterator[Detection]:
        """Detections in pixels of the volume, the highest score first."""
        corner = np.tile([batch.left, batch.top], 2)
        for i in np.argsort(-found.scores, kind="stable"):
            score = float(found.scores[i])
            box = (np.asarray(found.boxes[i], dtype=np.float64) + corner) * np.tile(scale, 2)
            if not score >= self.min_score or not np.isfinite(box).all():
                continue
            mask = None if found.masks is None else _placed_mask(found.masks[i], batch, scale, shape)
            yield Detection(key, box, score, mask, int(found.classes[i]))


def _placed_mask(mask: np.ndarray, batch: _Batch, scale: np.ndarray, shape: tuple[int, int]) -> Mask | None:
    """A mask of a part of the detector's image, (h, w) bool, in the volume; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    top, left = int(rows[0]) + batch.top, int(columns[0]) + batch.left
    pixels = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if (scale != 1).any():
        # With a pixel of air around it, so that what is resized ends where the mask does.
        padded = np.pad(pixels, 1).astype(np.float32)
        low = np.floor((np.array([left, top]) - 1) * scale).astype(int)
        high = np.ceil((np.array([left, top]) + pixels.shape[::-1] + 1) * scale).astype(int)
        matrix = np.array([[scale[0], 0, 0], [0, scale[1], 0]])
        matrix[:, 2] = (np.array([left, top]) - 1 + 0.5) * scale - 0.5 - low
        resized = cv2.warpAffine(padded, matrix, tuple(int(n) for n in high - low), flags=cv2.INTER_LINEAR)
        low_inside, high_inside = np.maximum(low, 0), np.minimum(high, shape[::-1])
        pixels = resized[
            low_inside[1] - low[1] : high_inside[1] - low[1], low_inside[0] - low[0] : high_inside[0] - low[0]
        ]
        pixels, left, top = pixels >= 0.5, int(low_inside[0]), int(low_inside[1])
        if not pixels.any():
            return None
    return Mask(top, left, pixels.copy())  # a view would keep the masks of the whole slice
