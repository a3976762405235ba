"""The published detector from the maps on, written out in NumPy: anchors, decoding, clipping, NMS and RoIAlign of boxes
that name their first and last pixel."""

import math

import numpy as np

SIZES, RATIOS, STRIDE = (16, 24, 32, 48, 96, 192), (0.5, 1.0, 2.0), 4


def anchors(height: int, width: int) -> np.ndarray:
    """(height * width * 18, 4) x1, y1, x2, y2, row by row, and for each cell size by size."""
    boxes = []
    for row in range(height):
        for column in range(width):
            for size in SIZES:
                for ratio in RATIOS:
                    w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
                    reach_x, reach_y = round((w - 1) / 2), round((h - 1) / 2)
                    x, y = STRIDE * column, STRIDE * row
                    boxes.append([x - reach_x, y - reach_y, x + reach_x, y + reach_y])
    return np.array(boxes, dtype=np.float64)


def decode(boxes: np.ndarray, deltas: np.ndarray, stds: tuple, image_size: tuple[int, int]) -> np.ndarray:
    height, width = image_size
    limit = abs(math.log(16 / 1000))
    decoded = []
    for (x1, y1, x2, y2), delta in zip(boxes, deltas, strict=True):
        dx, dy, dw, dh = (d * s for d, s in zip(delta, stds, strict=True))
        dw, dh = (min(max(d, -limit), limit) for d in (dw, dh))
        w, h = x2 - x1 + 1, y2 - y1 + 1
        x, y = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
        w, h = w * math.exp(dw), h * math.exp(dh)
        corners = x - w / 2 + 0.5, y - h / 2 + 0.5, x + w / 2 - 0.5, y + h / 2 - 0.5
        limits = width - 1, height - 1, width - 1, height - 1
        decoded.append([min(max(c, 0), largest) for c, largest in zip(corners, limits, strict=True)])
    return np.array(decoded)


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of a box with each of (n, 4)."""
    first, last = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.maximum(last - first + 1, 0), axis=1)
    areas = [np.prod(b[..., 2:] - b[..., :2] + 1, axis=-1) for b in (box, boxes)]
    return shared / (areas[0] + areas[1] - shared)


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    order, kept = list(np.argsort(-scores, kind="stable")), []
    while order:
        best, rest = order[0], np.array(order[1:], dtype=int)
        kept.append(best)
        order = list(rest[overlaps(boxes[best], boxes[rest]) <= threshold]) if len(rest) else []
    return kept


def roi_align(features: np.ndarray, box: np.ndarray, size: int, samples: int = 2) -> np.ndarray:
    """(C, H, W) and a box -> (C, size, size): the mean of samples x samples points in each bin."""
    x1, y1, x2, y2 = box
    left, top, right, bottom = (v / STRIDE for v in (x1, y1, x2 + 1, y2 + 1))
    bin_w, bin_h = (right - left) / size, (bottom - top) / size
    steps = (np.arange(size * samples) + 0.5) / samples
    xs, ys = left + steps * bin_w, top + steps * bin_h
    points = np.array([[_bilinear(features, y, x) for x in xs] for y in ys])  # (S, S, C)
    return points.reshape(size, samples, size, samples, -1).mean((1, 3)).transpose(2, 0, 1)


def _bilinear(features: np.ndarray, y: float, x: float) -> np.ndarray:
    channels, height, width = features.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    y, x = y - top, x - left
    return (features[:, top, left] * (1 - x) + features[:, top, right] * x) * (1 - y) + (
        features[:, bottom, left] * (1 - x) + features[:, bottom, right] * x
    ) * y
