"""Augmentation for images with any number of slices, in HU."""

import math

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import BlendTransform, Transform


class AffineTransform(Transform):
    """An affine map of the image plane; the output has the size of the input.

    Coordinates are continuous: pixel i covers [i, i + 1].

    Args:
        matrix: (2, 3), from input to output (x, y).
        fill: value of image pixels that come from outside.
    """

    def __init__(self, matrix: np.ndarray, fill: float):
        super().__init__()
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.fill = fill

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, D), bilinear."""
        return self._warp(img, cv2.INTER_LINEAR, self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W), nearest; 0 comes from outside."""
        return self._warp(segmentation, cv2.INTER_NEAREST, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(n, 2) of x, y."""
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]

    def inverse(self) -> Transform:
        return AffineTransform(cv2.invertAffineTransform(self.matrix), self.fill)

    def _warp(self, image: np.ndarray, interpolation: int, fill: float) -> np.ndarray:
        height, width = image.shape[:2]
        # OpenCV counts from pixel centres: p -> M (p + 0.5) - 0.5.
        matrix = self.matrix.copy()
        matrix[:, 2] += matrix[:, :2].sum(axis=1) * 0.5 - 0.5

        def warp(plane: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            return cv2.warpAffine(
                np.ascontiguousarray(plane), matrix, (width, height), out, interpolation, cv2.BORDER_CONSTANT, fill
            )

        if image.ndim == 2:
            return warp(image)
        # One slice after the other, as warpAffine takes 4 channels at most; each slice stays contiguous in memory.
        slices = np.empty((image.shape[2], height, width), dtype=image.dtype)
        for i, plane in enumerate(slices):
            warp(image[:, :, i], plane)
        return slices.transpose(1, 2, 0)


class ResizeIfNeeded(T.Augmentation):
    """A resize that leaves an image of the right size alone; interpolating it would change nothing and take its time.

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
    """Joint random shift, scale and rotation about the image centre, each drawn uniformly.

    Args:
        prob: probability to transform at all.
        shift: largest shift, as a fraction of width and height.
        scale: largest deviation of the scale from 1.
        rotation: largest angle in degrees.
        fill: value of image pixels that come from outside.
    """

    def __init__(
        self, prob: float = 0.8, shift: float = 0.04, scale: float = 0.2, rotation: float = 15.0, fill: float = -1024.0
    ):
        super().__init__()
        self.prob = prob
        self.shift = shift
        self.scale = scale
        self.rotation = rotation
        self.fill = fill

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return T.NoOpTransform()
        height, width = image.shape[:2]
        angle = math.radians(self._rand_range(-self.rotation, self.rotation))
        scale = 1 + self._rand_range(-self.scale, self.scale)
        shift = np.array(
            [self._rand_range(-self.shift, self.shift) * width, self._rand_range(-self.shift, self.shift) * height]
        )
        linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        centre = np.array([width / 2, height / 2])
        offset = centre + shift - linear @ centre
        return AffineTransform(np.column_stack([linear, offset]), self.fill)


class RandomHUJitter(T.Augmentation):
    """Random gain and offset of the HU values, for scanners and protocols that differ: hu * gain + offset.

    Args:
        prob: probability to transform at all.
        offset: largest offset in HU.
        gain: largest deviation of the gain from 1. Water, at 0 HU, does not change with it.
    """

    def __init__(self, prob: float, offset: float = 20.0, gain: float = 0.05):
        super().__init__()
        self.prob = prob
        self.offset = offset
        self.gain = gain

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return T.NoOpTransform()
        gain = 1 + self._rand_range(-self.gain, self.gain)
        offset = self._rand_range(-self.offset, self.offset)
        # Python's float keeps float32 images float32.
        return BlendTransform(src_image=float(offset), src_weight=1.0, dst_weight=float(gain))
