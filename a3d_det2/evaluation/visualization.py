"""Pictures of results: FROC curves, and key slices with ground truth and detections."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .froc import FrocCurve

GROUND_TRUTH, DETECTION = "#35d04b", "#ffb000"


def plot_froc(curves: dict[str, FrocCurve], highest_fps: float = 16) -> Figure:
    """Draw FROC curves, with a logarithmic axis from 1/8 to ``highest_fps`` false positives per image.

    Args:
        curves: by their name in the legend; one without lesions is left out.
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    fps = np.geomspace(1 / 8, highest_fps, 500)
    for name, curve in curves.items():
        if curve.num_lesions:
            axes.plot(fps, curve.at(fps), label=f"{name} ({curve.num_lesions} lesions)")
    ticks = 2.0 ** np.arange(-3, math.log2(highest_fps) + 1)
    axes.set(xscale="log", xlim=(fps[0], fps[-1]), ylim=(0, 1.02))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="False positives per image", ylabel="Sensitivity")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="lower right")
    return figure


def draw_key_slice(
    axes: Axes,
    hu: np.ndarray,
    ground_truths: np.ndarray,
    detections: np.ndarray,
    window: tuple[float, float] = (-175, 275),
) -> None:
    """Draw a key slice with its lesions (green) and detections with their scores (orange).

    Args:
        axes: matplotlib's, to draw on.
        hu: (H, W) in HU.
        ground_truths: (m, 4) XYXY.
        detections: (n, 5) XYXY and score.
        window: HU shown as black and white; the default is soft tissue.
    """
    height, width = hu.shape
    # Boxes are continuous: pixel i covers [i, i + 1].
    axes.imshow(hu, cmap="gray", vmin=window[0], vmax=window[1], extent=(0, width, height, 0), interpolation="nearest")
    axes.set_axis_off()

    def outline(x1, y1, x2, y2, **style):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.5, **style))

    for box in np.reshape(ground_truths, (-1, 4)):
        outline(*box, edgecolor=GROUND_TRUTH)
    for *box, score in np.reshape(detections, (-1, 5)):
        outline(*box, edgecolor=DETECTION, linestyle="--")
        axes.text(box[0], box[1] - 1, f"{score:.2f}", color=DETECTION, fontsize=8, va="bottom", clip_on=True)


def plot_key_slices(samples: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], columns: int = 4) -> Figure:
    """A grid of key slices.

    Args:
        samples: title, hu, ground_truths and detections of each; see :func:`draw_key_slice`.
        columns: most pictures in a row.
    """
    columns = min(columns, len(samples))
    rows = math.ceil(len(samples) / columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows), layout="constrained")
    for i, (title, *sample) in enumerate(samples):
        axes = figure.add_subplot(rows, columns, i + 1)
        draw_key_slice(axes, *sample)
        axes.set_title(title, fontsize=8)
    return figure
