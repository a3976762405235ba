"""fvcore transforms for images with any number of slices, in HU, and how they are drawn at random."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

Uniform = Callable[[float, float], float]  # draws a number between two others
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
BORDERS = {"constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}


class AffineTransform(Transform):
    """An affine map of the image plane; the output has the size of the input.

    Coordinates are continuous: pixel i covers [i, i + 1].

    Args:
        matrix: (2, 3), from input to output (x, y).
        fill: value of image pixels that come from outside, with the border "constant".
        interpolation: a key of ``INTERPOLATIONS``.
        border: a key of ``BORDERS``; "reflect" takes the mirror image, without the outermost pixels once more.
    """

    def __init__(self, matrix: np.ndarray, fill: float, interpolation: str = "bilinear", border: str = "constant"):
        super().__init__()
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.fill = fill
        self.interpolation = interpolation
        self.border = border

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Map an image, (H, W) or (H, W, D)."""
        return self._warp(img, INTERPOLATIONS[self.interpolation], self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Map a mask, (H, W) uint8 of 0 and 1: with bilinear images of the nearest pixels, with bicubic ones as they
        are, rounded; with the border "constant", 0 comes from outside."""
        how = cv2.INTER_NEAREST if self.interpolation == "bilinear" else INTERPOLATIONS[self.interpolation]
        return self._warp(segmentation, how, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map points, (n, 2) of x and y."""
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]

    def inverse(self) -> Transform:
        matrix = cv2.invertAffineTransform(self.matrix)
        return AffineTransform(matrix, self.fill, self.interpolation, self.border)

    def _warp(self, image: np.ndarray, interpolation: int, fill: float) -> np.ndarray:
        height, width = image.shape[:2]
        # OpenCV counts from pixel centres: p -> M (p + 0.5) - 0.5.
        matrix = self.matrix.copy()
        matrix[:, 2] += matrix[:, :2].sum(axis=1) * 0.5 - 0.5

        def warp(plane: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            return cv2.warpAffine(
                np.ascontiguousarray(plane), matrix, (width, height), out, interpolation, BORDERS[self.border], fill
            )

        if image.ndim == 2:
            return warp(image)
        # One slice after the other, as warpAffine takes 4 channels at most; each slice stays contiguous in memory.
        slices = np.empty((image.shape[2], height, width), dtype=image.dtype)
        for i, plane in enumerate(slices):
            warp(image[:, :, i], plane)
        return slices.transpose(1, 2, 0)


def draw_affine(
    image_size: tuple[int, int],
    shift: float,
    scale: float,
    rotation: float,
    fill: float,
    uniform: Uniform,
    interpolation: str = "bilinear",
    border: str = "constant",
) -> AffineTransform:
    """Draw a joint shift, scale and rotation about the image centre.

    Args:
        image_size: (height, width).
        shift: largest shift, as a fraction of width and height.
        scale: largest deviation of the scale from 1.
        rotation: largest angle in degrees.
        uniform: draws a number between two others.
        fill, interpolation, border: see :class:`AffineTransform`.
    """
    height, width = image_size
    angle = math.radians(uniform(-rotation, rotation))
    factor = 1 + uniform(-scale, scale)
    offset = np.array([uniform(-shift, shift) * width, uniform(-shift, shift) * height])
    linear = factor * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = np.array([width / 2, height / 2])
    matrix = np.column_stack([linear, centre + offset - linear @ centre])
    return AffineTransform(matrix, fill, interpolation, border)


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
