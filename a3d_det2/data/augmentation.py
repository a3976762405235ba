"""Detectron2's augmentation for images with any number of slices, in HU."""

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

from .transforms import draw_affine, draw_hu_jitter


class ResizeIfNeeded(T.Augmentation):
    """Resizes an image unless it has the right size; interpolating it would change nothing and take its time.

    Args:
        resize: an augmentation whose transforms are Detectron2's ResizeTransform.
    """

    def __init__(self, resize: T.Augmentation):
        super().__init__()
        self.resize = resize

    def get_transform(self, image: np.ndarray) -> Transform:
        transform = self.resize.get_transform(image)
        if isinstance(transform, T.ResizeTransform) and (transform.new_h, transform.new_w) == image.shape[:2]:
            return T.NoOpTransform()
        return transform


class RandomAffine(T.Augmentation):
    """Shifts, scales and rotates an image about its centre at random, each drawn uniformly.

    Args:
        prob: probability to transform at all.
        shift, scale, rotation, fill, interpolation, border: see :func:`.draw_affine`.
    """

    def __init__(
        self,
        prob: float = 0.8,
        shift: float = 0.04,
        scale: float = 0.2,
        rotation: float = 15.0,
        fill: float = -1024.0,
        interpolation: str = "bilinear",
        border: str = "constant",
    ):
        super().__init__()
        self.prob = prob
        self.shift = shift
        self.scale = scale
        self.rotation = rotation
        self.fill = fill
        self.interpolation = interpolation
        self.border = border

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return T.NoOpTransform()
        how = self.interpolation, self.border
        limits = self.shift, self.scale, self.rotation
        return draw_affine(image.shape[:2], *limits, self.fill, self._rand_range, *how)


class RandomHUJitter(T.Augmentation):
    """Changes gain and offset of the HU values at random, as scanners and protocols differ.

    Args:
        prob: probability to transform at all.
        offset, gain: see :func:`.draw_hu_jitter`. Water, at 0 HU, does not change with the gain.
    """

    def __init__(self, prob: float, offset: float = 20.0, gain: float = 0.05):
        super().__init__()
        self.prob = prob
        self.offset = offset
        self.gain = gain

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return T.NoOpTransform()
        return draw_hu_jitter(self.offset, self.gain, self._rand_range)
