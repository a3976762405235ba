"""Synthetic CT series in DeepLesion's own layout, where only neighbouring slices tell lesions from vessels.

On its key slice a lesion (ellipsoid) and a vessel (tube) are drawn by the same rule; away from it the lesion shrinks
and ends after a few mm, while the vessel goes on. Pure NumPy and OpenCV. In-plane lengths are in pixels, z in mm.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..files import slice_number
from .dl_info import SPLITS
from .png import HU_OFFSET, write_png
from .recist import recist_box
from .series import series_name

INTERVALS = (0.5, 1.0, 2.0, 2.5, 5.0)  # mm
# All columns of DL_info.csv.
COLUMNS = tuple(
    "File_name Patient_index Study_index Series_ID Key_slice_index Measurement_coordinates Bounding_boxes "
    "Lesion_diameters_Pixel_ Normalized_lesion_location Coarse_lesion_type Possibly_noisy Slice_range Spacing_mm_px_ "
    "Image_size DICOM_windows Patient_gender Patient_age Train_Val_Test".split()
)

AIR, FAT, MUSCLE, LUNG, BONE = -1000.0, -100.0, 45.0, -850.0, 500.0  # HU
NOISE = 12.0  # HU, standard deviation
REACH = 10.0  # mm over which a vessel moves sideways, so that in a long series it stays in the body


@dataclass(frozen=True)
class Blob:
    """A lesion or a vessel.

    Attributes:
        x, y: centre on its key slice, 0-based pixels; z: in mm.
        long, short: semi-axes in pixels; angle: of the long axis, in radians.
        hu: value inside.
        depth: semi-axis along z in mm; infinite for a vessel.
        drift: pixels per mm of z that the centre moves near z, (x, y); it comes to rest after ``REACH`` mm or so.
            Zero for a lesion.
    """

    x: float
    y: float
    z: float
    long: float
    short: float
    angle: float
    hu: float
    depth: float = math.inf
    drift: tuple[float, float] = (0.0, 0.0)

    @property
    def is_vessel(self) -> bool:
        return math.isinf(self.depth)

    def recist(self) -> np.ndarray:
        """Give the ends of the long, then of the short axis on the key slice, (4, 2)."""
        along = np.array([math.cos(self.angle), math.sin(self.angle)])
        across = np.array([-along[1], along[0]])
        ends = [self.long * along, -self.long * along, self.short * across, -self.short * across]
        return np.array([self.x, self.y]) + ends

    def box(self) -> np.ndarray:
        """Give the box around the axes that DeepLesion would, (4,) XYXY."""
        return recist_box(self.recist())


@dataclass(frozen=True)
class Series:
    """What there is to draw of one series.

    Attributes:
        name: folder, such as "000001_01_01".
        slices: slice numbers on disk.
        interval: distance between slices in mm; slice k lies at k * interval.
        width, height: pixels.
        blobs: lesions and vessels.
        seed: of anatomy and noise, a tuple of whole numbers.
    """

    name: str
    slices: tuple[int, ...]
    interval: float
    width: int
    height: int
    blobs: tuple[Blob, ...]
    seed: tuple[int, ...]


def random_series(
    index: int, split: str, *, size: int, intervals: Sequence[float], context: float, seed: int
) -> tuple[Series, list[dict]]:
    """Invent a series with one key slice.

    Args:
        index: counts the series of all splits from 0; two in a row are two studies of one patient.
        split: "train", "val" or "test".
        size: width and height in pixels.
        intervals: slice intervals to choose from, in mm.
        context: mm of slices on either side of the key slice.
        seed: the same seed, index and arguments give the same series.

    Returns:
        the series and its rows of DL_info.csv, one per lesion.
    """
    rng = np.random.default_rng([seed, index])
    interval = float(rng.choice(intervals))
    beside = math.ceil(context / interval)
    first = int(rng.integers(1, 100))
    key = first + beside
    patient, study = index // 2 + 1, index % 2 + 1
    name = f"{patient:06d}_{study:02d}_01"
    spacing = round(float(rng.uniform(0.6, 0.95)) * 512 / size, 6)  # a field of view of 307 to 486 mm

    num_lesions = int(rng.integers(1, 4))
    blobs = _random_blobs(rng, num_lesions + int(rng.integers(3, 7)), size, size, key * interval)
    # Later blobs found less room, so they are smaller and further out: lesions must not be the first ones.
    blobs = [blobs[i] for i in rng.permutation(len(blobs))]
    lesions = [replace(b, depth=float(rng.uniform(3, 5)), drift=(0.0, 0.0)) for b in blobs[:num_lesions]]
    slices, blobs = tuple(range(first, key + beside + 1)), (*lesions, *blobs[num_lesions:])
    series = Series(name, slices, interval, size, size, blobs, (seed, index))
    age = f"{int(rng.integers(18, 90))}.0" if rng.random() > 0.05 else "NaN"
    gender = str(rng.choice(["F", "M"]))
    rows = []
    for lesion in lesions:
        lesion_type = -1 if split == "train" else int(rng.integers(1, 9))
        values = (
            f"{name}_{key:03d}.png",
            patient,
            study,
            1,
            key,
            _join(lesion.recist().ravel() + 1),
            _join(lesion.box() + 1),
            _join((2 * lesion.long, 2 * lesion.short)),
            _join((lesion.x / size, lesion.y / size, 0.5)),
            lesion_type,
            0,
            f"{first}, {key + beside}",
            _join((spacing, spacing, interval)),
            f"{size}, {size}",
            "-175, 275",
            gender,
            age,
            SPLITS[split],
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return series, rows


def series_from_annotations(records: list[dict], *, seed: int) -> Series:
    """Give pixels to annotated geometry: lesions where the annotations say, vessels beside them.

    Args:
        records: the dicts of :func:`load_deeplesion` for all key slices of one series.
        seed: the same seed and records give the same series.

    Raises:
        ValueError: if there are no records, or they are of several series.
    """
    names = {series_name(record["file_name"]) for record in records}
    if len(names) != 1:
        raise ValueError(f"Expected the key slices of one series, got those of {len(names)}: {sorted(names)[:5]}.")
    (name,) = names
    numbers = [int(part) for part in name.split("_")]
    rng = np.random.default_rng([seed, *numbers])
    width, height = records[0]["width"], records[0]["height"]
    interval = records[0]["slice_interval"]
    interval = interval if 0 < interval < math.inf else 1.0
    slices: set[int] = set()
    lesions: list[Blob] = []
    for record in records:
        key = slice_number(record["file_name"])
        first, last = record["slice_range"]
        slices.update(range(min(first, key), max(last, key) + 1))
        for annotation in record["annotations"]:
            lesions.append(_lesion_from_recist(rng, np.array(annotation["recist"]), key * interval))
    # Vessels shaped as the lesions; several around the first key slice, one more for each further one.
    vessels: list[Blob] = []
    for i, z in enumerate(sorted({lesion.z for lesion in lesions})):
        count = int(rng.integers(3, 7)) if i == 0 else 1
        vessels += _random_blobs(rng, count, width, height, z, (*lesions, *vessels))
    return Series(name, tuple(sorted(slices)), interval, width, height, (*lesions, *vessels), (seed, *numbers))


def render_slice(series: Series, index: int) -> np.ndarray:
    """Draw one slice.

    Returns:
        (H, W) float32, in HU.
    """
    z = index * series.interval
    image = _anatomy(series, z)
    for blob in series.blobs:
        _draw(image, blob, z)
    noise = np.random.default_rng([*series.seed, index]).normal(0, NOISE, image.shape).astype(np.float32)
    return image + noise


def write_series(series: Series, image_root: str) -> None:
    """Write every slice of the series as 16-bit PNG under ``image_root``."""
    folder = os.path.join(image_root, series.name)
    os.makedirs(folder, exist_ok=True)
    for index in series.slices:
        stored = np.clip(np.rint(render_slice(series, index)) + HU_OFFSET, 0, 65535).astype(np.uint16)
        write_png(os.path.join(folder, f"{index:03d}.png"), stored)


def _random_blobs(
    rng: np.random.Generator, count: int, width: int, height: int, z: float, others: Sequence[Blob] = ()
) -> list[Blob]:
    """Draw up to ``count`` vessels at ``z`` (mm) inside the body, shaped about as the lesions in ``others`` if there
    are any; no box touches another or one of ``others``."""
    blobs: list[Blob] = []
    boxes = [other.box() for other in others]
    shapes = [(other.long, other.short) for other in others if not other.is_vessel]
    size = min(width, height)
    for _ in range(50 * count):
        if len(blobs) == count:
            break
        radius, direction = 0.8 * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
        if shapes:
            long, short = rng.uniform(0.8, 1.25) * np.array(shapes[rng.integers(len(shapes))])
        else:
            long = rng.uniform(0.025, 0.07) * size
            short = long * rng.uniform(0.6, 0.95)
        tilt, heading = rng.uniform(0, 0.004) * size, rng.uniform(0, 2 * math.pi)
        blob = Blob(
            x=width / 2 + radius * math.cos(direction) * 0.39 * width,
            y=height / 2 + radius * math.sin(direction) * 0.29 * height,
            z=z,
            long=long,
            short=short,
            angle=rng.uniform(0, math.pi),
            hu=rng.uniform(110, 160),
            drift=(tilt * math.cos(heading), tilt * math.sin(heading)),
        )
        box = blob.box()
        if not any((box[:2] <= other[2:]).all() and (other[:2] <= box[2:]).all() for other in boxes):
            blobs.append(blob)
            boxes.append(box)
    return blobs


def _lesion_from_recist(rng: np.random.Generator, recist: np.ndarray, z: float) -> Blob:
    """Make a lesion of its RECIST points, (4, 2), and the place of its key slice along z (mm)."""
    x, y = ((recist.min(axis=0) + recist.max(axis=0)) / 2).tolist()
    axes = recist[1] - recist[0], recist[3] - recist[2]
    long, short = (max(float(np.hypot(*axis)) / 2, 0.5) for axis in axes)
    angle = math.atan2(axes[0][1], axes[0][0])
    return Blob(x, y, z, long, short, angle, hu=rng.uniform(110, 160), depth=rng.uniform(3, 5))


def _draw(image: np.ndarray, blob: Blob, z: float) -> None:
    """Draw a blob into ``image``, (H, W) HU, as it is at ``z`` (mm)."""
    dz = z - blob.z
    if abs(dz) >= blob.depth:
        return
    shrink = math.sqrt(1 - (dz / blob.depth) ** 2)
    travel = REACH * math.tanh(dz / REACH)
    x, y = blob.x + blob.drift[0] * travel, blob.y + blob.drift[1] * travel
    reach = blob.long + 2
    left, right = max(int(x - reach), 0), min(int(x + reach) + 2, image.shape[1])
    top, bottom = max(int(y - reach), 0), min(int(y + reach) + 2, image.shape[0])
    if left >= right or top >= bottom:
        return
    rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
    cos, sin = math.cos(blob.angle), math.sin(blob.angle)
    along = ((columns - x) * cos + (rows - y) * sin) / (blob.long * shrink)
    across = ((rows - y) * cos - (columns - x) * sin) / (blob.short * shrink)
    # An edge about one pixel wide.
    inside = np.clip((1 - np.hypot(along, across)) * blob.short * shrink + 0.5, 0, 1)
    window = image[top:bottom, left:right]
    window += inside * (blob.hu - window)


def _anatomy(series: Series, z: float) -> np.ndarray:
    """Draw body, fat, lungs, bones and soft-tissue texture at ``z`` (mm), without noise: (H, W) float32 HU."""
    rng = np.random.default_rng([*series.seed, 0, 0])
    height, width = series.height, series.width
    v, u = np.meshgrid(
        np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32), indexing="ij"
    )
    image = np.full((height, width), AIR, dtype=np.float32)
    grow = 1 + 0.001 * (z % 400 - 200) * rng.uniform(-1, 1)  # the body changes slowly along z
    body_u, body_v = rng.uniform(0.84, 0.92) * grow, rng.uniform(0.62, 0.70) * grow
    fat = rng.uniform(0.04, 0.09)

    def fill(cu, cv, ru, rv, hu):
        image[((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2 < 1] = hu

    fill(0, 0, body_u, body_v, FAT)
    fill(0, 0, body_u - fat, body_v - fat, MUSCLE)
    texture = cv2.resize(rng.normal(0, 8, (8, 8)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    image += np.where(image == MUSCLE, texture, 0)
    lung = rng.uniform(0.5, 1.0)
    for side in (-1, 1):
        fill(side * rng.uniform(0.38, 0.42), rng.uniform(-0.1, 0), 0.27 * lung, 0.36 * lung, LUNG)
    for angle in np.linspace(0, 2 * np.pi, int(rng.integers(8, 13)), endpoint=False) + z * 0.01:
        fill((body_u - fat - 0.03) * math.cos(angle), (body_v - fat - 0.03) * math.sin(angle), 0.035, 0.025, BONE)
    fill(0, body_v - fat - 0.17, 0.12, 0.11, BONE - 150)
    fill(0, body_v - fat - 0.1, 0.04, 0.035, MUSCLE - 15)
    return image


def _join(values) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
