"""The anatomy of a phantom volume: what is not bright like a lesion, and where blobs may be.

Body coordinates (x, y, z) are mm to the patient's left, to the back and from head to feet, from the centre of the first
axial slice. Arrays: D slices from head to feet, H rows, W columns.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...data.phantom import AIR, BONE, FAT, LUNG, MUSCLE

LIVER, HIP, SPINE, TABLE = MUSCLE + 15, BONE - 100, BONE - 150, -100.0  # HU
BONES = (HIP, SPINE)  # that blobs keep away from
LEVELS = (0.0, 0.15, 0.35, 0.6, 0.82, 1.0)  # of the length: neck, shoulders, chest, waist, pelvis, thighs
DOME = 25.0  # mm over which the body closes where air begins
RIBS, CHEST = 0.035, 0.48  # size of a rib; part of the length that has ribs


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


def random_body(rng: np.random.Generator, half: float, length: float) -> Body:
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


def draw_body(body: Body, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
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
