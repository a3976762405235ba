"""Where the body is on each slice of a CT."""

import cv2
import numpy as np

from .volume import Volume

SKIN = -300  # HU, between air and fat
COARSE = 3.0  # mm, of the pixels that are looked at
THIN = 15.0  # mm; what is thinner, such as the table, is not of the body
SMALLEST = 10.0  # cm^2 of a part of the body
LUNG = -950  # HU, between the air around a body and lungs
AIR_ALONE = 0.05  # of a slice may be more than LUNG, such as the table, where nothing of a body is


def body_boxes(volume: Volume) -> np.ndarray:
    """Find the rows and columns of each slice that the body covers.

    Where a body reaches the border of the slice, the slice was cut out of a larger one, and lungs may be open to the
    border: then it is taken whole. So is one without solid tissue, unless it shows air alone.

    Returns:
        (D, 4) int, left, top, right, bottom in pixels, the last two exclusive; all 0 where there is no body.
    """
    x, y = volume.spacing
    step_x, step_y = (max(1, round(COARSE / length)) for length in (x, y))
    pixel = (x * step_x, y * step_y)
    kernel = np.ones([max(1, round(THIN / length)) for length in pixel[::-1]], np.uint8)
    smallest = SMALLEST * 100 / (pixel[0] * pixel[1])
    height, width = volume.hu.shape[1:]
    boxes = np.zeros((len(volume.hu), 4), dtype=int)
    for box, hu in zip(boxes, volume.hu, strict=True):
        mask = (hu[::step_y, ::step_x] > SKIN).astype(np.uint8)
        # Lungs are filled before what is thin goes, or the walls of a chest would.
        solid = cv2.morphologyEx(_filled(mask), cv2.MORPH_OPEN, kernel)
        _, _, parts, _ = cv2.connectedComponentsWithStats(solid)
        parts = parts[1:][parts[1:, cv2.CC_STAT_AREA] >= smallest]
        is_cut = solid[[0, -1]].any() or solid[:, [0, -1]].any()
        if is_cut or (not len(parts) and (hu[::step_y, ::step_x] > LUNG).mean() > AIR_ALONE):
            box[:] = 0, 0, width, height
        elif len(parts):
            left, top = parts[:, :2].min(axis=0)
            right, bottom = (parts[:, :2] + parts[:, 2:4]).max(axis=0)
            box[:] = left * step_x, top * step_y, min(right * step_x, width), min(bottom * step_y, height)
    return boxes


def _filled(mask: np.ndarray) -> np.ndarray:
    """A mask without its holes."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED)
