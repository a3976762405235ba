"""One HTML page to look at a volume and its lesions in a browser. It needs no network and names nobody.

The page holds each slice as a WebP of 8 bits: HU by :data:`HU` and :data:`CODES`, finer in soft tissue than elsewhere.
The browser turns what it decodes back into HU and windows that. Places in the page are in pixels of the slice from the
upper left corner of the first one, so the box [5, 5, 5, 5] goes from 5 to 6.
"""

import base64
import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..files import replacing
from .lesion import Lesion, LesionSlice, Mask
from .volume import Volume

WINDOWS = {"Soft tissue": (400, 40), "Lung": (1500, -600), "Bone": (1800, 400)}  # width and level in HU
HU = (-1024, -200, 300, 1000, 3000)  # between these, codes are linear in HU
CODES = (0, 52, 196, 234, 255)
PROJECTED = (-100, 900)  # HU, black and white of the coronal projection
SAMPLE = 12  # slices whose size tells that of the others
MARGIN = 0.97  # of the limit, for what the sample does not tell


class Grade(NamedTuple):
    """How slices are compressed.

    Attributes:
        quality: of WebP, up to 100.
        reduction: pixels of the slice, in each direction, that become one.
    """

    quality: int
    reduction: int = 1


GRADES = (
    *(Grade(quality) for quality in (95, 92, 90, 87, 85, 80, 75, 70, 60)),
    *(Grade(quality, 2) for quality in (85, 80, 70, 60)),
    *(Grade(quality, 4) for quality in (80, 60)),
)


def write_viewer(path: str, volume: Volume, lesions: Sequence[Lesion], *, size_limit: float = 40e6) -> None:
    """Write the page, its slices in the best of :data:`GRADES` that fits.

    Args:
        path: of the page.
        volume: its name, instances and identifiers are left out; its notes are shown.
        lesions: listed in this order.
        size_limit: most bytes of the page.

    Raises:
        ValueError: if no grade fits.
    """
    environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["ml"] = _millilitres
    template = environment.get_template("viewer.html")
    edges = slice_edges(volume)
    known = {
        "geometry": _geometry(volume, lesions, edges),
        "lesions": lesions,
        "notes": volume.notes,
        "windows": WINDOWS,
        "coronal": _webp(_coronal(volume, edges), 85),
    }
    for grade in _grades_that_may_fit(volume.hu, size_limit):
        pieces = template.generate(slices=_encoded(volume.hu, grade), reduction=grade.reduction, **known)
        with contextlib.suppress(_TooLarge), replacing(path) as part:
            _write(part, pieces, size_limit)
            return
    raise ValueError(f"expected a size limit that {len(volume.hu)} slices fit in, got {size_limit:g} bytes")


class _TooLarge(Exception):
    pass


def _write(path: str, pieces: Iterable[str], size_limit: float) -> None:
    size = 0
    with open(path, "wb") as f:
        for piece in pieces:
            size += f.write(piece.encode("utf-8"))
            if size > size_limit:
                raise _TooLarge


def _grades_that_may_fit(hu: np.ndarray, size_limit: float) -> Iterator[Grade]:
    """From the first grade on with which a sample says that all slices fit."""
    sample = hu[np.unique(np.linspace(0, len(hu) - 1, SAMPLE).round().astype(int))]
    expected = (len(hu) / len(sample) * sum(map(len, _encoded(sample, grade))) for grade in GRADES)
    first = next((i for i, size in enumerate(expected) if size <= MARGIN * size_limit), len(GRADES))
    yield from GRADES[first:]


def _encoded(hu: np.ndarray, grade: Grade) -> Iterator[str]:
    """Each slice of (D, H, W) as WebP in Base64."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(partial(_encode, grade=grade), hu)


def _encode(hu: np.ndarray, grade: Grade) -> str:
    if grade.reduction > 1:
        size = [max(1, length // grade.reduction) for length in hu.shape[::-1]]
        hu = cv2.resize(hu.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return _webp(np.interp(hu, HU, CODES), grade.quality)


def _webp(greys: np.ndarray, quality: int) -> str:
    """A picture, (H, W) from 0 to 255, as WebP in Base64."""
    _, content = cv2.imencode(".webp", np.rint(greys).astype(np.uint8), [cv2.IMWRITE_WEBP_QUALITY, quality])
    return base64.b64encode(content).decode("ascii")


def slice_edges(volume: Volume) -> np.ndarray:
    """(D + 1,) mm along the normal where one slice ends and the next begins: halfway between them."""
    half = volume.slice_interval / 2
    between = (volume.positions[1:] + volume.positions[:-1]) / 2
    return np.concatenate([volume.positions[:1] - half, between, volume.positions[-1:] + half])


def _coronal(volume: Volume, edges: np.ndarray) -> np.ndarray:
    """The highest HU along the rows, windowed, from the first to the last of ``edges``; its pixels are squares."""
    highest = volume.hu.max(axis=1)  # (D, W)
    low, high = PROJECTED
    greys = (np.clip(highest.astype(np.float32), low, high) - low) * (255 / (high - low))
    length = edges[-1] - edges[0]
    rows = max(1, round(length / volume.spacing[0]))
    places = edges[0] + (np.arange(rows) + 0.5) * length / rows
    index = np.interp(places, volume.positions, np.arange(len(greys)))
    above = index.astype(int)
    below = np.minimum(above + 1, len(greys) - 1)
    weight = (index - above)[:, None]
    return (1 - weight) * greys[above] + weight * greys[below]


def _geometry(volume: Volume, lesions: Sequence[Lesion], edges: np.ndarray) -> dict:
    """What the script of the page has to know, for JSON."""
    _, rows, columns = volume.hu.shape
    return {
        "columns": columns,
        "rows": rows,
        "spacing": volume.spacing,
        "positions": np.round(volume.positions, 3).tolist(),
        "edges": np.round(edges, 3).tolist(),
        "hu": HU,
        "codes": CODES,
        "windows": list(WINDOWS.values()),
        "lesions": [_lesion(lesion) for lesion in lesions],
    }


def _lesion(lesion: Lesion) -> dict:
    first, last = lesion.slices[0].index, lesion.slices[-1].index
    return {
        "number": int(lesion.number),
        "score": float(lesion.score),
        "largest": int(lesion.largest),
        "columns": _rounded([lesion.box_voxel[0, 0], lesion.box_voxel[1, 0] + 1]),
        "range": [int(first), int(last)],
        "slices": [_lesion_slice(one) for one in lesion.slices],
    }


def _lesion_slice(one: LesionSlice) -> dict:
    return {
        "index": int(one.index),
        "box": _rounded(np.asarray(one.box) + [0, 0, 1, 1]),
        "score": None if math.isnan(one.score) else float(one.score),
        "outlines": [] if one.mask is None else [_rounded(line) for line in outlines(one.mask)],
    }


def outlines(mask: Mask) -> list[np.ndarray]:
    """Closed lines around the parts and holes of a mask.

    Returns:
        (n, 2) for each, (x, y) in pixels of the slice from the corner of the first one.
    """
    # Each pixel as four: the lines go through the middles of these, a quarter within the edge of the mask.
    fine = np.asarray(mask.pixels, dtype=np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    lines, _ = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [(line[:, 0] + 0.5) / 2 + [mask.left, mask.top] for line in lines]


def _rounded(values: np.ndarray | list) -> list:
    return np.round(np.asarray(values, dtype=float), 2).tolist()


def _millilitres(mm3: float) -> str:
    """A volume with about two digits, and no more than two behind the point."""
    ml = mm3 / 1000
    return f"{ml:.{2 if ml < 1 else 1 if ml < 10 else 0}f} ml"
