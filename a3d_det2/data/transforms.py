"""fvcore transforms for images with any number of slices, in HU, and how they are drawn at random."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

Uniform = Callable[[float, float], float]  # draws a number between two others


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
        """Map an image, (H, W) or (H, W, D), bilinearly."""
        return self._warp(img, cv2.INTER_LINEAR, self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Map a mask, (H, W), each pixel from the nearest one; 0 comes from outside."""
        return self._warp(segmentation, cv2.INTER_NEAREST, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map points, (n, 2) of x and y."""
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


def draw_affine(
    image_size: tuple[int, int], shift: float, scale: float, rotation: float, fill: float, uniform: Uniform
) -> AffineTransform:
    """Draw a joint shift, scale and rotation about the image centre.

    Args:
        image_size: (height, width).
        shift: largest shift, as a fraction of width and height.
        scale: largest deviation of the scale from 1.
        rotation: largest angle in degrees.
        fill: value of image pixels that come from outside.
        uniform: draws a number between two others.
    """
    height, width = image_size
    angle = math.radians(uniform(-rotation, rotation))
    factor = 1 + uniform(-scale, scale)
    offset = np.array([uniform(-shift, shift) * width, uniform(-shift, shift) * height])
    linear = factor * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = np.array([width / 2, height / 2])
    return AffineTransform(np.column_stack([linear, centre + offset - linear @ centre]), fill)


def draw_hu_jitter(offset: float, gain: float, uniform: Uniform) -> BlendTransform:
    """Draw a gain and an offset of the HU values: hu * gain + offset.

    Args:
        offset: largest offset in HU.
        gain: largest deviation of the gain from 1.
        uniform: draws a number between two others.
    """
    drawn_gain = 1 + uniform(-gain, gain)
    # Python's float keeps float32 images float32.
    return BlendTransform(src_image=float(uniform(-offset, offset)), src_weight=1.0, dst_weight=float(drawn_gain))
