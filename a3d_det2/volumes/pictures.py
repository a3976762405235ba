"""A picture of each lesion in three planes, for those who open no viewer.

Places in a plane are (along, down) in mm: along the columns or rows of the slices, and down the rows or the normal.
With a tilted gantry the slices are shifted back, so that nothing is sheared.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke

from ..files import replacing
from .lesion import Lesion, Mask
from .viewer import WINDOWS, outlines, slice_edges
from .volume import AIR, Volume

COLOUR = "#ffb000"
SIDE = 100.0  # mm of a panel, for lesions up to half of that
PIXELS = 400  # of a panel, along and down
AROUND = 10.0  # mm around the box of a lesion that tell whether it lies in a lung
LUNG_BELOW = -500  # HU
BAR = 20.0  # mm of the scale bar
SHADOW = [withStroke(linewidth=2.5, foreground="black")]  # what is white is seen on white, too


class Plane(NamedTuple):
    """A section of the volume.

    Attributes:
        title: of its panel.
        letters: which side of the patient is at the left, right, top and bottom.
        hu: (rows, columns).
        along, down: mm of the middle of each column, in a row that is not shifted, and of each row.
        shifts: mm along by which each row is shifted.
        shapes: (n, 2) mm each, around what is of the lesion.
    """

    title: str
    letters: str
    hu: np.ndarray
    along: np.ndarray
    down: np.ndarray
    shifts: np.ndarray
    shapes: list[np.ndarray]


def write_pictures(folder: str, volume: Volume, lesions: Sequence[Lesion], *, most: int = 50) -> list[str]:
    """Write ``lesion_001.png`` and so on, by the numbers of the lesions. The volume's name and notes are left out.

    Args:
        folder: where to; made if there is none.
        volume: that the lesions are of.
        lesions: of which only the first ``most`` are drawn.
        most: pictures.

    Returns:
        the paths of the pictures.
    """
    os.makedirs(folder, exist_ok=True)
    paths = []
    for lesion in lesions[:most]:
        path = os.path.join(folder, f"lesion_{lesion.number:03d}.png")
        with replacing(path) as part:
            plot_lesion(volume, lesion).savefig(part, format="png", dpi=150)
        paths.append(path)
    return paths


def plot_lesion(volume: Volume, lesion: Lesion, title: str | None = None) -> Figure:
    """Draw a lesion in three planes through it; ``title`` None is its number, score and axes."""
    width, level = WINDOWS[window_of(volume, lesion)]
    planes = [_axial(volume, lesion), _coronal(volume, lesion), _sagittal(volume, lesion)]
    sizes = [np.ptp(np.concatenate(plane.shapes), axis=0).max() for plane in planes]
    side = max(SIDE, 2 * max(sizes))
    figure = Figure(figsize=(9.6, 3.72), facecolor="black")
    for i, plane in enumerate(planes):
        axes = figure.add_axes((0.005 + i / 3, 0.012, 1 / 3 - 0.01, 0.835))
        _draw(axes, plane, side, (level - width / 2, level + width / 2))
    sizes = f"{lesion.long_mm:.0f} x {lesion.short_mm:.0f} mm"
    text = f"{lesion.number}, score {lesion.score:.2f}, {sizes}" if title is None else title
    figure.text(0.008, 0.982, text, color="white", fontsize=12, fontweight="bold", va="top")
    return figure


def window_of(volume: Volume, lesion: Lesion) -> str:
    """Which of :data:`.WINDOWS` a lesion is shown with: that for lungs if most of what is around it is air."""
    x, y = volume.spacing
    left, top, right, bottom = np.round(lesion.on_slice(lesion.largest).box).astype(int)
    near = np.full(volume.hu.shape[1:], False)
    columns, rows = round(AROUND / x), round(AROUND / y)
    near[max(top - rows, 0) : bottom + rows + 1, max(left - columns, 0) : right + columns + 1] = True
    near[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = False
    around = volume.hu[lesion.largest][near]
    return "Lung" if len(around) and np.median(around) < LUNG_BELOW else "Soft tissue"


def _axial(volume: Volume, lesion: Lesion) -> Plane:
    hu = volume.hu[lesion.largest]
    along, down = (np.arange(length) * mm for length, mm in zip(hu.shape[::-1], volume.spacing, strict=True))
    one = lesion.on_slice(lesion.largest)
    lines = ([] if one.mask is None else outlines(one.mask)) or [_box(*one.box)]
    shapes = [(line - 0.5) * volume.spacing for line in lines]
    return Plane(f"axial, slice {lesion.largest + 1}", "RLAP", hu, along, down, np.zeros(len(hu)), shapes)


def _coronal(volume: Volume, lesion: Lesion) -> Plane:
    return _along_normal("coronal", "RLHF", volume, lesion, axis=0)


def _sagittal(volume: Volume, lesion: Lesion) -> Plane:
    return _along_normal("sagittal", "APHF", volume, lesion, axis=1)


def _along_normal(title: str, letters: str, volume: Volume, lesion: Lesion, axis: int) -> Plane:
    """The plane through the centre of a lesion along the normal and the columns (``axis`` 0) or rows (1)."""
    indices, across = np.arange(len(volume.hu)), 1 - axis
    center = volume.offsets[_nearest(lesion.center_voxel[2], len(indices))]
    shifts = volume.offsets - center
    length = volume.hu.shape[1 + axis]
    cuts = _nearest(lesion.center_voxel[across] - shifts[:, across] / volume.spacing[across], length)
    hu = volume.hu[indices, cuts] if axis == 0 else volume.hu[indices, :, cuts]
    lines = _cut_outlines(lesion, axis, cuts)
    if not lines:
        low, high = lesion.box_voxel[:, axis]
        lines = [_box(low, lesion.slices[0].index, high, lesion.slices[-1].index)]
    spacing, edges = volume.spacing[axis], slice_edges(volume)
    shapes = []
    for x, z in (line.T for line in lines):
        along = (x - 0.5) * spacing + np.interp(z - 0.5, indices, shifts[:, axis])
        shapes.append(np.column_stack([along, np.interp(z, np.arange(len(edges)), edges)]))
    return Plane(title, letters, hu, np.arange(hu.shape[1]) * spacing, volume.positions, shifts[:, axis], shapes)


def _cut_outlines(lesion: Lesion, axis: int, cuts: np.ndarray) -> list[np.ndarray]:
    """Lines around what its masks have of a plane, (x or y, slice) in pixels and slices from the edge of the first.

    Args:
        cuts: (D,) index of the row (``axis`` 0) or column (1) that the plane takes of each slice.
    """
    pieces = {}
    for one in lesion.slices:
        if one.mask is not None:
            top, left, pixels = one.mask
            start, other, pixels = (left, top, pixels) if axis == 0 else (top, left, pixels.T)
            if 0 <= cuts[one.index] - other < len(pixels):
                pieces[one.index] = start, pixels[cuts[one.index] - other]
    if not pieces:
        return []
    first, low = min(pieces), min(start for start, _ in pieces.values())
    high = max(start + len(piece) for start, piece in pieces.values())
    plane = np.zeros((max(pieces) - first + 1, high - low), dtype=bool)
    for index, (start, piece) in pieces.items():
        plane[index - first, start - low : start - low + len(piece)] = piece
    return outlines(Mask(first, low, plane))


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """(4, 2) corners of a box, in pixels from the corner of the first one."""
    return np.array([[left, top], [right + 1, top], [right + 1, bottom + 1], [left, bottom + 1]], dtype=float)


def _nearest(places: float | np.ndarray, length: int) -> np.ndarray:
    """Index of the pixel, of ``length``, that is nearest to each place."""
    return np.clip(np.rint(places), 0, length - 1).astype(int)


def _draw(axes: Axes, plane: Plane, side: float, window: tuple[float, float]) -> None:
    """Draw a square of ``side`` mm with the lesion in its middle."""
    points = np.concatenate(plane.shapes)
    left, top = (points.min(axis=0) + points.max(axis=0)) / 2 - side / 2
    steps = (np.arange(PIXELS) + 0.5) * side / PIXELS
    rows = _places(top + steps, plane.down)
    shifts = np.interp(rows, np.arange(len(plane.shifts)), plane.shifts)
    columns = _places(left + steps - shifts[:, None], plane.along)
    maps = [grid.astype(np.float32) for grid in np.broadcast_arrays(columns, rows[:, None])]
    hu = plane.hu.astype(np.float32)
    patch = cv2.remap(hu, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=AIR)
    extent = (left, left + side, top + side, top)
    axes.imshow(patch, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="bilinear")
    for shape in plane.shapes:
        axes.add_patch(Polygon(shape, closed=True, fill=False, edgecolor=COLOUR, linewidth=1.3))
    axes.set_axis_off()
    style = {"color": "white", "fontsize": 9, "transform": axes.transAxes, "path_effects": SHADOW}
    for letter, x, y in zip(plane.letters, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.97, 0.03), strict=True):
        axes.text(x, y, letter, ha="center", va="center", **style)
    axes.set_title(plane.title, color="white", fontsize=10, pad=4)
    x, y = left + 0.04 * side, top + 0.95 * side
    axes.plot([x, x + BAR], [y, y], color="white", linewidth=2.5, solid_capstyle="butt", path_effects=SHADOW)
    axes.text(0.04 + BAR / side / 2, 0.065, "2 cm", ha="center", va="bottom", **style)


def _places(wanted: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """Indices, with fractions, of places in mm; -2 outside of the pixels."""
    before, after = (middles[1] - middles[0]) / 2, (middles[-1] - middles[-2]) / 2
    outside = (wanted < middles[0] - before) | (wanted > middles[-1] + after)
    return np.where(outside, -2, np.interp(wanted, middles, np.arange(len(middles))))
