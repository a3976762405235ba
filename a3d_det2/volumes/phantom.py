"""Synthetic CTs of a whole body with known lesions, rendered slice by slice.

Lesions (ellipsoids) and vessels (tubes) have the same sections on any slice, drawn by the same rule; a lesion ends
after a few mm, a vessel goes on. Pure NumPy.

Body coordinates (x, y, z) are mm to the patient's left, to the back and from head to feet, from the centre of the first
axial slice. Patient coordinates are DICOM's, LPS. Arrays: D slices from head to feet, H rows, W columns.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..data.phantom import AIR, BONE, FAT, LUNG, MUSCLE, NOISE
from ..data.recist import BOX_MARGIN

INTERVALS = (0.7, 1.0, 1.25, 2.0, 2.5, 3.0, 5.0)  # mm
LIVER, HIP, SPINE, TABLE = MUSCLE + 15, BONE - 100, BONE - 150, -100.0  # HU
BONES = (HIP, SPINE)  # that blobs keep away from
LEVELS = (0.0, 0.15, 0.35, 0.6, 0.82, 1.0)  # of the length: neck, shoulders, chest, waist, pelvis, thighs
DOME = 25.0  # mm over which the body closes where air begins
RIBS, CHEST = 0.035, 0.48  # size of a rib; part of the length that has ribs
GAP = 4.0  # mm at least between a lesion and what else is bright
TRIES = 300  # to find a place for a blob
SHORTEST_VESSEL = 100.0  # mm


class Ellipse(NamedTuple):
    """An axial section of an organ: centre and semi-axes in mm, of one z or of one per row, and its HU."""

    x: np.ndarray
    y: np.ndarray
    rx: np.ndarray
    ry: np.ndarray
    hu: float

    def holds(self, x: float, y: float, margin: float) -> np.ndarray:
        """Whether it holds a disc of radius ``margin`` around a point; negative margins grow it."""
        rx, ry = self.rx - margin, self.ry - margin
        there = (self.rx > 0) & (rx > 0) & (ry > 0)
        rx, ry = np.where(there, rx, 1), np.where(there, ry, 1)
        return there & (((x - self.x) / rx) ** 2 + ((y - self.y) / ry) ** 2 < 1)


@dataclass(frozen=True, eq=False)
class Body:
    """The anatomy; lengths in mm.

    Attributes:
        half: half of the field of view.
        length: from the first to the last axial slice.
        widths, depths: semi-axes of the outline at ``LEVELS``.
        fat: thickness of the fat under the skin.
        air: length without a body before the head and after the feet.
        lung, lung_x, lung_y: size against the largest, and place of the lungs.
        ribs: how many on a slice.
        texture: (n, 8, 8) HU, the coarse structure of soft tissue along z, y, x.
    """

    half: float
    length: float
    widths: np.ndarray
    depths: np.ndarray
    fat: float
    air: tuple[float, float]
    lung: float
    lung_x: float
    lung_y: float
    ribs: int
    texture: np.ndarray

    def part(self, z: np.ndarray) -> np.ndarray:
        """How far along the body, from 0 to 1."""
        return np.clip(z / self.length, 0, 1)

    def skin(self, z: np.ndarray) -> Ellipse:
        part = self.part(z)
        closing = np.ones_like(part)
        for air, beyond in zip(self.air, (z, self.length - z), strict=True):
            if air > 0:
                closing = closing * np.sqrt(np.clip(1 - ((air + DOME - beyond).clip(0) / DOME) ** 2, 0, 1))
        rx, ry = (closing * np.interp(part, LEVELS, r) for r in (self.widths, self.depths))
        return Ellipse(0 * part, 0 * part, rx, ry, FAT)

    def muscle(self, z: np.ndarray) -> Ellipse:
        skin = self.skin(z)
        return Ellipse(skin.x, skin.y, (skin.rx - self.fat).clip(0), (skin.ry - self.fat).clip(0), MUSCLE)

    def organs(self, z: np.ndarray) -> list[Ellipse]:
        """Liver, lungs and the bones other than ribs, in the order in which they are drawn; radii are 0 where there is
        none."""
        part, muscle, half = self.part(z), self.muscle(z), self.half
        thin = np.minimum(muscle.ry / (0.5 * half), 1)  # where the body closes, all in it is smaller

        def along(centre: float, reach: float) -> np.ndarray:
            return thin * np.sqrt(np.clip(1 - ((part - centre) / reach) ** 2, 0, 1))

        def fill(x, y, rx, ry, hu, size):
            return Ellipse(x * half * thin, y * half * thin, rx * half * size, ry * half * size, hu)

        lungs = self.lung * along(0.25, 0.2)
        hip = along(0.84, 0.11)
        spine = muscle.ry - 0.17 * half * thin
        return [
            fill(-0.3, -0.05, 0.38, 0.36, LIVER, along(0.48, 0.11)),
            *(fill(side * self.lung_x, self.lung_y, 0.27, 0.36, LUNG, lungs) for side in (-1, 1)),
            *(fill(side * 0.52, 0.12, 0.06, 0.2, HIP, hip) for side in (-1, 1)),
            fill(0, 0, 0.12, 0.11, SPINE, thin)._replace(y=spine),
            fill(0, 0, 0.04, 0.035, MUSCLE - 15, thin)._replace(y=spine + 0.07 * half * thin),
        ]

    def rib_cage(self, z: np.ndarray) -> list[Ellipse]:
        muscle = self.muscle(z)
        inside = 0.03 * self.half
        rx, ry = (muscle.rx - inside).clip(0), (muscle.ry - inside).clip(0)
        size = RIBS * self.half * ((self.part(z) < CHEST) & (rx > 0) & (ry > 0))
        angles = np.linspace(0, 2 * np.pi, self.ribs, endpoint=False)
        return [Ellipse(rx * np.cos(a + 0.01 * z), ry * np.sin(a + 0.01 * z), size, 0.7 * size, BONE) for a in angles]

    def is_free(self, x, y, z, margin: float, avoid: Collection[float]) -> np.ndarray:
        """Whether points, of as many x and y as z, lie ``margin`` mm within the ribs and away from organs of the HU in
        ``avoid``."""
        free = self.muscle(z).holds(x, y, margin + 2 * RIBS * self.half)
        for organ in self.organs(z):
            if organ.hu in avoid:
                free &= ~organ.holds(x, y, -margin)
        return free


@dataclass(frozen=True)
class Blob:
    """A lesion or a vessel: an ellipse on every axial slice; lengths in mm, places in body coordinates.

    Attributes:
        x, y, z: centre; of a vessel any point of its axis.
        long, short: semi-axes of the axial ellipse where it is largest; angle: of the long one, in radians.
        hu: value inside.
        first, last: z where it begins and ends; infinite where it goes on.
        tapers: mm over which the ellipse grows after ``first`` and shrinks before ``last``, as an ellipsoid does.
        drift: mm per mm of z that the centre moves, (x, y).
    """

    x: float
    y: float
    z: float
    long: float
    short: float
    angle: float
    hu: float
    first: float
    last: float
    tapers: tuple[float, float]
    drift: tuple[float, float] = (0.0, 0.0)

    @property
    def depth(self) -> float:
        """Half of its length along z."""
        return (self.last - self.first) / 2

    def centre(self, z):
        """The centre (x, y) of its ellipse at z, an array or a number."""
        return self.x + self.drift[0] * (z - self.z), self.y + self.drift[1] * (z - self.z)

    def size(self, z):
        """Of its ellipse at z, against the largest: 1 to 0."""
        into = np.maximum((self.first - z) / self.tapers[0], (z - self.last) / self.tapers[1]) + 1
        return np.sqrt(np.clip(1 - into.clip(0) ** 2, 0, 1))

    def recist(self, z: float) -> np.ndarray:
        """The ends (x, y) of the long, then of the short axis of its ellipse at z, (4, 2)."""
        along = self.long * np.array([math.cos(self.angle), math.sin(self.angle)])
        across = self.short * np.array([-math.sin(self.angle), math.cos(self.angle)])
        return np.array(self.centre(z)) + self.size(np.float64(z)) * np.array([along, -along, across, -across])


@dataclass(frozen=True, eq=False)
class PhantomVolume:
    """What there is to draw, and on which slices.

    Attributes:
        name: such as "volume_001".
        seed: of anatomy and noise, a tuple of whole numbers.
        width: of a slice in pixels; its height is the same.
        pixel: size of a pixel in mm.
        slice_interval: mm between slices, along the axis on which they follow each other.
        depth: number of slices.
        origin: (x, y, z) patient coordinates of the origin of body coordinates.
        body: the anatomy.
        lesions, vessels: from head to feet; lesion n is ``lesions[n - 1]``.
        oblique: degrees by which the whole grid is turned about x, around its middle.
        tilt: degrees by which each slice is tilted about x, as by the gantry; the step between slices stays.
    """

    name: str
    seed: tuple[int, ...]
    width: int
    pixel: float
    slice_interval: float
    depth: int
    origin: tuple[float, float, float]
    body: Body
    lesions: tuple[Blob, ...]
    vessels: tuple[Blob, ...]
    oblique: float = 0.0
    tilt: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return self.depth, self.width, self.width

    @property
    def directions(self) -> np.ndarray:
        """Unit vectors of columns, rows and slices as the rows of a (3, 3), in patient coordinates."""
        rows, step = math.radians(self.oblique + self.tilt), math.radians(self.oblique)
        return np.array([[1, 0, 0], [0, math.cos(rows), math.sin(rows)], [0, math.sin(step), -math.cos(step)]])

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), from (column, row, slice) to patient coordinates."""
        affine = np.eye(4)
        affine[:3, :3] = (self.directions * [[self.pixel], [self.pixel], [self.slice_interval]]).T
        middle = np.array([self.width - 1, self.width - 1, self.depth - 1]) / 2
        affine[:3, 3] = self.to_patient(0, 0, self.body.length / 2) - affine[:3, :3] @ middle
        return affine

    def to_patient(self, x: float, y: float, z: float) -> np.ndarray:
        """Patient coordinates of a point in body coordinates."""
        return np.array([self.origin[0] + x, self.origin[1] + y, self.origin[2] - z])

    def to_voxel(self, point: np.ndarray) -> np.ndarray:
        """(column, row, slice), not rounded, of a point in patient coordinates."""
        return np.linalg.solve(self.affine[:3, :3], np.asarray(point) - self.affine[:3, 3])

    def rows_and_columns(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Body coordinates of slice k: x of the columns (W,), y and z of the rows (H,)."""
        affine, indices = self.affine, np.arange(self.width)
        x, y, z = affine[:3, 3] + k * affine[:3, 2]
        return (
            x - self.origin[0] + indices * affine[0, 0],
            y - self.origin[1] + indices * affine[1, 1],
            self.origin[2] - z - indices * affine[2, 1],
        )


def random_volume(
    index: int,
    *,
    size: int = 256,
    slice_interval: float | None = None,
    length: float | None = None,
    lesion_size: tuple[float, float] = (5.0, 40.0),
    lesion_depth: tuple[float, float] | None = None,
    crowding: float = 1.0,
    seed: int = 0,
) -> PhantomVolume:
    """Invent a volume: 3 to 8 lesions in soft tissue, 8 to 20 vessels along the body, oblique and across it.

    Args:
        index: of the volume; each has its own anatomy.
        size: width and height of a slice in pixels.
        slice_interval: in mm; None draws one of ``INTERVALS``.
        length: from the first to the last slice in mm, about; None draws 300 to 600.
        lesion_size: shortest and longest long axis in the axial plane in mm.
        lesion_depth: smallest and largest semi-axis along z in mm; None makes it 0.7 to 1.2 of the mean radius in the
            axial plane.
        crowding: how many times as many lesions and vessels there are.
        seed: the same seed, index and arguments give the same volume.

    Raises:
        ValueError: if the body has no room for any lesion of this size.
    """
    rng = np.random.default_rng([seed, index])
    half = rng.uniform(0.6, 0.95) * 256
    pixel = round(2 * half / size, 6)
    drawn = float(rng.choice(INTERVALS)), rng.uniform(300, 600)
    interval = drawn[0] if slice_interval is None else slice_interval
    depth = max(round((drawn[1] if length is None else length) / interval) + 1, 2)
    origin = tuple(round(v, 1) for v in rng.uniform((-20, -200, -300), (20, -100, 900)).tolist())
    body = _random_body(rng, half, (depth - 1) * interval)
    volume = PhantomVolume(f"volume_{index + 1:03d}", (seed, index), size, pixel, interval, depth, origin, body, (), ())
    shapes = _shapes(rng, round(crowding * int(rng.integers(3, 9))), lesion_size)
    lesions: list[Blob] = []
    for long, short in shapes:
        deep = (long + short) / 2 * rng.uniform(0.7, 1.2) if lesion_depth is None else rng.uniform(*lesion_depth)
        lesions += _random_lesion(rng, volume, long, short, deep, lesions)
    if not lesions:
        raise ValueError(
            f"Expected lesions of {lesion_size[0]:g} to {lesion_size[1]:g} mm that fit into a body of "
            f"{body.length:g} mm, got no room for any of {len(shapes)}."
        )
    count, vessels = round(crowding * int(rng.integers(8, 21))), []
    for long, short in _shapes(rng, count, lesion_size):
        if len(vessels) < count:
            vessels += _random_vessel(rng, volume, long, short, lesions)
            if vessels and len(vessels) < count and rng.random() < 0.3:
                vessels += _random_branch(rng, volume, vessels[-1], lesions)
    head_first = tuple(sorted(lesions, key=lambda lesion: lesion.z))
    return replace(volume, lesions=head_first, vessels=tuple(vessels))


def render(volume: PhantomVolume, k: int) -> np.ndarray:
    """Draw slice k.

    Returns:
        (H, W) float32, in HU.
    """
    x, y, z = volume.rows_and_columns(k)
    image = _draw_body(volume.body, x, y, z)
    for blob in (*volume.vessels, *volume.lesions):
        draw_blob(image, blob, x, y, z)
    noise = np.random.default_rng([*volume.seed, k + 1]).standard_normal(image.shape, dtype=np.float32)
    return image + np.float32(NOISE) * noise


def labels(volume: PhantomVolume, k: int) -> np.ndarray:
    """Mark the pixels of slice k whose centres lie in a lesion.

    Returns:
        (H, W) uint8: the number of the lesion, from 1; 0 elsewhere.
    """
    x, y, z = volume.rows_and_columns(k)
    out = np.zeros((len(y), len(x)), dtype=np.uint8)
    for number, lesion in enumerate(volume.lesions, start=1):
        section = _section(lesion, x, y, z)
        if section is not None:
            rows, columns, distance, _ = section
            out[rows, columns][distance <= 1] = number
    return out


def draw_blob(image: np.ndarray, blob: Blob, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    """Draw a lesion or a vessel into ``image``, (H, W) HU.

    Args:
        image: of the slice.
        blob: what to draw.
        x: of the columns, (W,); y, z: of the rows, (H,), body coordinates.
    """
    section = _section(blob, x, y, z)
    if section is not None:
        rows, columns, distance, radius = section
        # An edge about one pixel wide.
        inside = np.clip((1 - distance) * (radius / np.float32(x[1] - x[0]))[:, None] + np.float32(0.5), 0, 1)
        window = image[rows, columns]
        window += inside * (np.float32(blob.hu) - window)


def _section(blob: Blob, x, y, z) -> tuple[slice, slice, np.ndarray, np.ndarray] | None:
    """Rows and columns that a blob may touch, (h, w) the distance of their pixels from its centre in radii, and (h,)
    its short semi-axis in mm on each row; None if it touches none."""
    if z.max() <= blob.first or z.min() >= blob.last:
        return None
    pixel = x[1] - x[0]
    cx, cy = blob.centre(z)
    reach = blob.long + 2 * pixel
    touched = np.flatnonzero((blob.first < z) & (z < blob.last) & (np.abs(y - cy) < reach))
    if not len(touched):
        return None
    rows = slice(touched[0], touched[-1] + 1)
    z, y, cx, cy = z[rows], y[rows], cx[rows], cy[rows]
    left = np.searchsorted(x, cx.min() - reach)
    right = np.searchsorted(x, cx.max() + reach)
    if left >= right:
        return None
    columns = slice(left, right)
    size = blob.size(z)
    scale = np.maximum(size, 1e-6)[:, None]
    dx, dy = x[None, columns] - cx[:, None], (y - cy)[:, None]
    cos, sin = math.cos(blob.angle), math.sin(blob.angle)
    along, across = (dx * cos + dy * sin) / (blob.long * scale), (dy * cos - dx * sin) / (blob.short * scale)
    return rows, columns, np.hypot(along, across).astype(np.float32), (blob.short * size).astype(np.float32)


def _draw_body(body: Body, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Draw table, body and bones, without noise: (H, W) float32 HU; x of the columns, y and z of the rows."""
    image = np.full((len(y), len(x)), AIR, dtype=np.float32)

    def fill(ellipse: Ellipse, texture: np.ndarray | None = None) -> None:
        away = np.abs(y - ellipse.y)
        rows = np.flatnonzero((ellipse.rx > 0) & (away < ellipse.ry))
        if not len(rows):
            return
        rows = slice(rows[0], rows[-1] + 1)
        ry = np.maximum(ellipse.ry[rows], 1e-6)
        half = ellipse.rx[rows] * np.sqrt(np.clip(1 - (away[rows] / ry) ** 2, 0, 1))
        left = np.searchsorted(x, (ellipse.x[rows] - half).min())
        right = np.searchsorted(x, (ellipse.x[rows] + half).max())
        inside = np.abs(x[None, left:right] - ellipse.x[rows, None]) < half[:, None]
        value = np.float32(ellipse.hu) if texture is None else ellipse.hu + texture[rows, left:right]
        np.copyto(image[rows, left:right], value, where=inside)

    table = np.abs(y - 0.84 * body.half) < max(0.012 * body.half, 0.6 * (x[1] - x[0]))
    image[np.ix_(table, np.abs(x) < 0.55 * body.half)] = TABLE
    fill(body.skin(z))
    fill(body.muscle(z), _texture(body, x, y, z))
    for ellipse in (*body.organs(z), *body.rib_cage(z)):
        fill(ellipse)
    return image


def _texture(body: Body, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The structure of soft tissue as a smooth spline through space, (H, W) float32 HU."""

    def weights(part: np.ndarray, count: int) -> np.ndarray:
        distance = np.abs(np.clip(part, 0, 1)[:, None] * (count - 1) - np.arange(count))
        near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clip(0) ** 3 / 6
        return np.where(distance < 1, near, far).astype(np.float32)

    along_z = weights(body.part(z), len(body.texture))
    along_y, along_x = (weights((v / body.half + 1) / 2, 8) for v in (y, x))
    return np.einsum("hz,hy,zyx->hx", along_z, along_y, body.texture, optimize=True) @ along_x.T


def _random_body(rng: np.random.Generator, half: float, length: float) -> Body:
    vary = rng.normal(0, 0.015, (2, len(LEVELS)))
    width, depth = rng.uniform(0.80, 0.88), rng.uniform(0.60, 0.67)
    air = [rng.uniform(0.02, 0.05) * length if rng.random() < 0.3 else 0.0 for _ in range(2)]
    return Body(
        half=half,
        length=length,
        widths=half * width * (np.array([0.8, 1.02, 1.0, 0.93, 1.06, 1.0]) + vary[0]),
        depths=half * depth * (np.array([0.85, 0.98, 1.02, 0.97, 1.0, 0.95]) + vary[1]),
        fat=half * rng.uniform(0.04, 0.09),
        air=(air[0], air[1]),
        lung=rng.uniform(0.7, 1.0),
        lung_x=rng.uniform(0.38, 0.42),
        lung_y=rng.uniform(-0.1, 0.0),
        ribs=int(rng.integers(8, 13)),
        texture=rng.normal(0, 24, (max(round(length / 40), 2), 8, 8)).astype(np.float32),  # the spline leaves a third
    )


def _shapes(rng: np.random.Generator, count: int, sizes: tuple[float, float]) -> list[tuple[float, float]]:
    """Long and short semi-axes in mm."""
    longs = np.exp(rng.uniform(*np.log(sizes), count)) / 2
    return list(zip(longs.tolist(), (longs * rng.uniform(0.6, 1, count)).tolist(), strict=True))


def _random_place(rng: np.random.Generator, body: Body) -> tuple[float, float, float]:
    """Any place in the outline, (x, y, z)."""
    radius, direction = math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
    z = rng.uniform(0, body.length)
    muscle = body.muscle(np.float64(z))
    return float(radius * math.cos(direction) * muscle.rx), float(radius * math.sin(direction) * muscle.ry), z


def _random_lesion(
    rng: np.random.Generator, volume: PhantomVolume, long: float, short: float, depth: float, others: Sequence[Blob]
) -> list[Blob]:
    """A lesion in soft tissue, away from the others; none if there is no room."""
    body, interval = volume.body, volume.slice_interval
    gap = max(GAP, 2 * volume.pixel)
    angle, hu = rng.uniform(0, math.pi), rng.uniform(110, 160)
    for _ in range(TRIES):
        x, y, z = _random_place(rng, body)
        k = round(z / interval)
        z = k * interval + min(max(z - k * interval, -depth / 2), depth / 2)  # so that a slice cuts its middle half
        levels = z + depth * np.array([-1.0, 0.0, 1.0])
        if levels[0] < 0 or levels[2] > body.length or not body.is_free(x, y, levels, long, (*BONES, LUNG)).all():
            continue
        near = [
            math.dist((x, y, z), (other.x, other.y, other.z)) < max(long, depth) + max(other.long, other.depth) + gap
            for other in others
        ]
        lesion = Blob(x, y, z, long, short, angle, hu, z - depth, z + depth, (depth, depth))
        if not any(near) and labels(replace(volume, lesions=(lesion,)), k).any():
            return [lesion]
    return []


def _random_vessel(
    rng: np.random.Generator, volume: PhantomVolume, long: float, short: float, lesions: Sequence[Blob]
) -> list[Blob]:
    """A vessel along the body, oblique or across it, away from lesions; none if there is no room."""
    body = volume.body
    angle, hu = rng.uniform(0, math.pi), rng.uniform(110, 160)
    kind = rng.choice(["along", "oblique", "across"], p=[0.4, 0.4, 0.2])
    for _ in range(TRIES):
        x, y, z = _random_place(rng, body)
        if kind == "across":  # an ellipsoid as well, so that its ends are round
            reach = rng.uniform(SHORTEST_VESSEL / 2, 90)
            angle = rng.uniform(0, math.pi)
            ends = (reach - short) * np.array([-1.0, 1.0])
            levels = np.full(2, z)
            if not body.is_free(x + ends * math.cos(angle), y + ends * math.sin(angle), levels, short, BONES).all():
                continue
            vessel = Blob(x, y, z, reach, short, angle, hu, z - short, z + short, (short, short))
        else:
            slope = math.tan(math.radians(rng.uniform(0, 10) if kind == "along" else rng.uniform(10, 70)))
            heading = rng.uniform(0, 2 * math.pi)
            drift = slope * math.cos(heading), slope * math.sin(heading)
            endless = Blob(x, y, z, long, short, angle, hu, -math.inf, math.inf, (1.0, 1.0), drift)
            first, last = _way(body, endless)
            if (last - first) * math.hypot(1, slope) < SHORTEST_VESSEL:
                continue
            taper = min(rng.uniform(1.5, 3) * long, 0.3 * (last - first))
            vessel = replace(endless, first=first, last=last, tapers=(taper, taper))
        if not any(_are_near(vessel, lesion, volume.pixel) for lesion in lesions):
            return [vessel]
    return []


def _random_branch(
    rng: np.random.Generator, volume: PhantomVolume, parent: Blob, lesions: Sequence[Blob]
) -> list[Blob]:
    """A thinner vessel that leaves another one; none if there is no room."""
    body = volume.body
    first, last = max(parent.first, 0.0), min(parent.last, body.length)
    for _ in range(TRIES // 10):
        z = rng.uniform(first, last)
        thinner = rng.uniform(0.6, 0.85) * float(parent.size(np.float64(z)))
        slope, heading = math.tan(math.radians(rng.uniform(20, 60))), rng.uniform(0, 2 * math.pi)
        x, y = parent.centre(z)
        drift = slope * math.cos(heading), slope * math.sin(heading)
        endless = replace(
            parent, x=x, y=y, z=z, long=parent.long * thinner, short=parent.short * thinner, drift=drift,
            first=-math.inf, last=math.inf, tapers=(1.0, 1.0),
        )  # fmt: skip
        above, below = _way(body, endless)
        up = rng.random() < 0.5
        length = (z - above if up else below - z) * math.hypot(1, slope)
        if length < SHORTEST_VESSEL / 2 or thinner * parent.short < volume.pixel / 2:
            continue
        taper = min(2 * endless.long, 0.3 * length / math.hypot(1, slope))
        # It begins within the parent, so that nobody sees where.
        ways = {"first": above, "last": z, "tapers": (taper, 1.0)} if up else {"first": z, "last": below}
        branch = replace(endless, **{"tapers": (1.0, taper), **ways})
        if not any(_are_near(branch, lesion, volume.pixel) for lesion in lesions):
            return [branch]
    return []


def _way(body: Body, blob: Blob) -> tuple[float, float]:
    """From where to where in z a tube stays within the body, from its centre; infinite where it passes the end of the
    volume; (z, z) if its centre has no room."""
    z = np.arange(0.0, body.length + 1)
    x, y = blob.centre(z)
    out = np.flatnonzero(~body.is_free(x, y, z, blob.long, BONES))
    here = int(np.clip(round(blob.z), 0, len(z) - 1))
    if here in out:
        return blob.z, blob.z
    before, after = out[out < here], out[out > here]
    return (float(z[before[-1]]) if len(before) else -math.inf), (float(z[after[0]]) if len(after) else math.inf)


def _are_near(vessel: Blob, lesion: Blob, pixel: float) -> bool:
    """Whether a vessel touches a lesion or what is close to it, in the axial planes of the lesion."""
    gap = max(GAP, 2 * pixel)
    z = np.linspace(lesion.first - gap, lesion.last + gap, 15)
    z = z[(vessel.first - gap < z) & (z < vessel.last + gap)]
    if not len(z):
        return False
    cx, cy = vessel.centre(z)
    # An ellipse lies within the discs of its short radius along the rest of its long one.
    along = np.array([math.cos(vessel.angle), math.sin(vessel.angle)])
    away = np.stack([lesion.x - cx, lesion.y - cy], axis=-1)
    rest = vessel.long - vessel.short
    nearest = np.clip(away @ along, -rest, rest)[:, None] * along
    distance = np.linalg.norm(away - nearest, axis=-1)
    return bool((distance < lesion.long + vessel.short + gap).any())


def truth(volume: PhantomVolume) -> dict:
    """Say where the lesions are, in numbers that JSON holds.

    Returns:
        name, seed, shape (D, H, W), spacing (x, y), slice_interval, oblique, tilt;
        affine: (4, 4), from (column, row, slice) to patient coordinates, LPS, mm;
        vessels: how many;
        lesions: of those with a voxel in the volume,
            number: its value in :func:`labels`.
            center_lps, center_voxel: (x, y, z) of the ellipsoid's centre; voxels are not rounded.
            axes_mm: whole lengths of the ellipsoid: long and short in the axial plane, and along z.
            angle: degrees of the long axis in the axial plane, from left to back.
            long_mm, short_mm: the first two of ``axes_mm``, what RECIST would measure on the best slice.
            volume_mm3: of the ellipsoid; voxels: how many the label map has.
            box_voxel: tight, [[x1, y1, z1], [x2, y2, z2]], the first and last voxels with its label.
            box_deeplesion: the same with ``BOX_MARGIN`` pixels more on each side in x and y, not clipped.
            box_lps: [[x, y, z] lowest, highest], mm, of the outer edges of the voxels of ``box_voxel``.
            central_slice: index of the slice nearest to the centre.
            is_cut: whether its label reaches the first or the last slice.
    """
    found = []
    for number, lesion in enumerate(volume.lesions, start=1):
        center = volume.to_patient(lesion.x, lesion.y, lesion.z)
        box, voxels = _box_of_labels(volume, lesion)
        if not voxels:
            continue
        low, high = (np.array(corner) for corner in box)
        corners = np.stack(np.meshgrid(*np.stack([low - 0.5, high + 0.5], axis=1), indexing="ij"), axis=-1)
        corners = corners.reshape(8, 3) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        axes = 2 * lesion.long, 2 * lesion.short, 2 * lesion.depth
        margin = np.array([BOX_MARGIN, BOX_MARGIN, 0])
        center_voxel = volume.to_voxel(center)
        found.append(
            {
                "number": number,
                "center_lps": _rounded(center),
                "center_voxel": _rounded(center_voxel),
                "axes_mm": _rounded(axes),
                "angle": round(math.degrees(lesion.angle), 3),
                "long_mm": round(axes[0], 4),
                "short_mm": round(axes[1], 4),
                "volume_mm3": round(math.pi / 6 * math.prod(axes), 3),
                "voxels": voxels,
                "box_voxel": box,
                "box_deeplesion": [(low - margin).tolist(), (high + margin).tolist()],
                "box_lps": [_rounded(corners.min(axis=0)), _rounded(corners.max(axis=0))],
                "central_slice": int(np.clip(round(center_voxel[2]), 0, volume.depth - 1)),
                "is_cut": box[0][2] == 0 or box[1][2] == volume.depth - 1,
            }
        )
    return {
        "name": volume.name,
        "seed": list(volume.seed),
        "shape": list(volume.shape),
        "spacing": [volume.pixel, volume.pixel],
        "slice_interval": volume.slice_interval,
        "oblique": volume.oblique,
        "tilt": volume.tilt,
        "affine": [_rounded(row, 9) for row in volume.affine],
        "vessels": len(volume.vessels),
        "lesions": found,
    }


def _box_of_labels(volume: PhantomVolume, lesion: Blob) -> tuple[list[list[int]], int]:
    """The first and last voxels of a lesion's label, and how many there are."""
    alone, found = replace(volume, lesions=(lesion,)), []
    # In oblique slices it lies where its enclosing box does.
    corners = [
        volume.to_voxel(volume.to_patient(lesion.x, lesion.y + dy, z))[2]
        for dy in (-lesion.long, lesion.long)
        for z in (lesion.first, lesion.last)
    ]
    for k in range(max(math.floor(min(corners)), 0), min(math.ceil(max(corners)) + 1, volume.depth)):
        rows, columns = np.nonzero(labels(alone, k))
        found.append(np.stack([columns, rows, np.full_like(rows, k)], axis=1))
    if not sum(map(len, found)):
        return [], 0
    voxels = np.concatenate(found)
    return [voxels.min(axis=0).tolist(), voxels.max(axis=0).tolist()], len(voxels)


def _rounded(values, digits: int = 4) -> list[float]:
    return [round(float(v), digits) for v in values]
