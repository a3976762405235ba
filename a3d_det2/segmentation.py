"""Masks as COCO writes them: run-length encoding, as text or as a list of runs, and polygons.

pycocotools trusts what it decodes. Runs that do not end with the image are written past the memory of the mask, which
ends the process or worse, and a polygon with a corner at 1e9 asks for as many points. So runs are decoded here, and
polygons are measured before pycocotools draws them.
"""

import numpy as np

from .files import shortened

LARGEST_IMAGE = 1 << 28  # pixels, of a mask
LONGEST_OUTLINE = 1e6  # px, of a polygon; pycocotools makes five points a pixel


def encode_mask(mask: np.ndarray) -> dict:
    """Turn a mask, (H, W) bool, into COCO's run-length encoding, as text."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(length) for length in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(segmentation: dict | list, height: int, width: int) -> np.ndarray:
    """Turn a mask of COCO's, in any of its encodings, into (height, width) bool.

    Raises:
        ValueError: if it is none, is of another size, its runs do not cover the image, or see :func:`draw_polygons`.
    """
    _check_size(height, width)
    if not isinstance(segmentation, dict):
        return draw_polygons(segmentation, height, width)
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise ValueError(f"expected a mask of the image's size {height} x {width}, got one of {shortened(size)}")
    runs = _listed_runs(counts) if isinstance(counts, list) else _runs_of_text(counts)
    pixels = height * width
    # Each by itself first: their sum could pass the largest integer and come out right.
    if runs.min(initial=0) < 0 or runs.max(initial=0) > pixels or runs.sum() != pixels:
        raise ValueError(f"expected runs that cover the {pixels} pixels of the image, got others")
    # Runs go down the columns, and every other one is of the mask.
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def check_polygons(polygons: list) -> None:
    """
    Args:
        polygons: each a list or array x, y, x, y, ... in pixels.

    Raises:
        ValueError: unless each has three corners or more, all numbers, and neither a corner nor its outline reaches
            further than ``LONGEST_OUTLINE``.
    """
    if not isinstance(polygons, list) or not polygons:
        raise ValueError(f"expected a list of polygons or run-length encoding, got {shortened(polygons)}")
    for polygon in polygons:
        try:
            corners = np.asarray(polygon)
        except ValueError:  # of lists within it
            corners = np.empty(0)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or corners.dtype.kind not in "iuf":
            raise ValueError(f"expected a polygon x, y, x, y, ... of three corners or more, got {shortened(polygon)}")
        corners = corners.reshape(-1, 2).astype(np.float64)
        extent = max(np.abs(corners).max(), np.abs(np.diff(corners, axis=0, append=corners[:1])).sum())
        if not extent <= LONGEST_OUTLINE:  # which NaN is not either
            text = f"expected a polygon that is at most {LONGEST_OUTLINE:.0f} pixels long, got {shortened(polygon)}"
            raise ValueError(text)


def draw_polygons(polygons: list, height: int, width: int) -> np.ndarray:
    """Draw polygons as COCO does, into (height, width) bool; see :func:`check_polygons` for arguments and errors. Also
    images of more than ``LARGEST_IMAGE`` pixels are a ValueError."""
    from pycocotools import mask as coco_mask

    _check_size(height, width)
    check_polygons(polygons)
    encoded = coco_mask.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(encoded)).astype(bool)


def _check_size(height: int, width: int) -> None:
    if height * width > LARGEST_IMAGE:
        raise ValueError(f"expected an image of at most {LARGEST_IMAGE} pixels, got one of {height} x {width}")


def _listed_runs(counts: list) -> np.ndarray:
    if not all(type(run) is int and 0 <= run < 1 << 32 for run in counts):
        raise ValueError("expected runs that are whole numbers from 0 on, got others")
    return np.array(counts, dtype=np.int64)


def _runs_of_text(counts: str | bytes | None) -> np.ndarray:
    """Read COCO's text: numbers of 5 bits a character, the lowest first, bit 32 where another character follows; from
    the fourth on, a number is the difference from the last but one."""
    try:
        text = counts.encode("ascii") if isinstance(counts, str) else bytes(memoryview(counts))
    except (UnicodeEncodeError, TypeError):
        raise ValueError(f"expected runs as COCO writes them, got {shortened(counts)}") from None
    bits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((bits & 32) == 0)
    if not len(ends) or bits.min() < 0 or bits.max() > 63 or ends[-1] != len(bits) - 1:
        raise ValueError(f"expected runs as COCO writes them, got {shortened(counts)}")
    starts = np.append(0, ends[:-1] + 1)
    place = np.arange(len(bits)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise ValueError(f"expected runs of less than 2 ** 31 pixels, got {shortened(counts)}")
    runs = np.add.reduceat((bits & 31) << (5 * place), starts)
    runs -= (bits[ends] >> 4 & 1) << (5 * (place[ends] + 1))  # the sign
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
