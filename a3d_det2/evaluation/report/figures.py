"""Pictures of results: FROC curves, strata, scores, and key slices with ground truth and detections."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..froc import FrocCurve

GROUND_TRUTH, DETECTION, SUBJECT = "#35d04b", "#ffb000", "#ff4fd8"
SOFT_TISSUE, LUNG = (-175, 275), (-1350, 150)  # HU shown as black and white
LOWEST_FPS = 1 / 8
_LONGEST_LABEL = 60
_FAR = 1e5  # px; matplotlib cannot draw what is much farther away


def plot_froc(
    curves: dict[str, FrocCurve],
    bands: dict[str, np.ndarray] | None = None,
    highest_fps: float = 16,
    per: str = "image",
) -> Figure:
    """Draw FROC curves, with a logarithmic axis from 1/8 to ``highest_fps`` false positives per image.

    Args:
        curves: by their name in the legend; one without lesions is left out. A curve is drawn dotted beyond its last
            detection, where the last sensitivity goes on.
        bands: for some of the names, (500, 2) limits of a confidence band at :func:`froc_axis`.
        per: what the axis calls an image.
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    fps = froc_axis(highest_fps)
    for i, (name, curve) in enumerate(curves.items()):
        if curve.num_lesions == 0:
            continue
        style = {"color": _colour(i)}
        sensitivity = curve.at(fps)
        reached = fps <= (curve.fps_per_image[-1] if len(curve.fps_per_image) else 0)
        axes.plot(fps[reached], sensitivity[reached], label=f"{plain(name)} ({curve.num_lesions} lesions)", **style)
        if not reached.all():
            axes.plot(fps[~reached], sensitivity[~reached], linestyle=":", **style)
        if name in (bands or {}):
            axes.fill_between(fps, *bands[name].T, alpha=0.2, linewidth=0, **style)
    ticks = 2.0 ** np.arange(math.log2(LOWEST_FPS), math.log2(highest_fps) + 1)
    axes.set(xscale="log", xlim=(fps[0], fps[-1]), ylim=(0, 1.02))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=f"False positives per {per}", ylabel="Sensitivity")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="lower right")
    return figure


def froc_axis(highest_fps: float = 16) -> np.ndarray:
    """(500,) false positives per image at which a curve is drawn."""
    return np.geomspace(LOWEST_FPS, highest_fps, 500)


def plot_strata(averages: dict[str, dict[str, tuple[float, float, float]]]) -> Figure:
    """Draw the average sensitivity of each stratum, with its interval.

    Args:
        averages: result -> stratum -> average and the limits of its interval (NaN: none).
    """
    strata = list(dict.fromkeys(name for values in averages.values() for name in values))
    figure = Figure(figsize=(6.5, 0.8 + len(strata) * (0.16 + 0.09 * len(averages))), layout="constrained")
    axes = figure.add_subplot()
    for i, (result, values) in enumerate(averages.items()):
        offset = 0.7 * ((i + 0.5) / len(averages) - 0.5)
        places = np.array([strata.index(name) for name in values]) + offset
        average, low, high = np.array(list(values.values())).T
        limits = np.nan_to_num([average - low, high - average])
        axes.errorbar(
            average,
            places,
            xerr=limits.clip(0),
            fmt="o",
            markersize=4,
            capsize=2,
            color=_colour(i),
            label=plain(result),
        )
    axes.set_yticks(range(len(strata)), strata)
    axes.set(xlabel="Average sensitivity", xlim=(0, 1.02), ylim=(len(strata) - 0.4, -0.6))
    axes.grid(alpha=0.3, axis="x")
    if len(averages) > 1:
        figure.legend(loc="outside upper center", ncols=min(len(averages), 3))
    return figure


def plot_scores(scores: dict[str, np.ndarray], thresholds: Sequence[float] = ()) -> Figure:
    """Histogram of the scores of each kind of detection, on logarithmic axes where all scores are positive.

    Args:
        scores: name in the legend -> scores, of up to three kinds; what is beyond 1e30 is left out.
        thresholds: vertical lines; NaN is left out.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    scores = {name: values[np.abs(values) < 1e30] for name, values in scores.items()}
    joined = np.concatenate([np.zeros(0), *scores.values()])
    if len(joined):
        low, high = joined.min(), joined.max()
        logarithmic = low > 0 and low < high
        bins = np.geomspace(low, high, 61) if logarithmic else 60
        colours = ["#35a046", "#9aa0a6", "#d1495b"][: len(scores)]
        axes.hist(list(scores.values()), bins=bins, stacked=True, label=list(scores), color=colours)
        axes.set(xscale="log" if logarithmic else "linear", yscale="log")
        figure.legend(loc="outside upper center", ncols=len(scores))
    for threshold in thresholds:
        if np.abs(threshold) < 1e30:
            axes.axvline(threshold, color="black", linewidth=0.7, linestyle="--")
    axes.set(xlabel="Score", ylabel="Detections")
    return figure


def display_window(hu: np.ndarray, box: np.ndarray) -> tuple[float, float]:
    """The HU window to look at a place in: the lung's where most of it is air, otherwise that of soft tissue.

    Args:
        hu: (H, W).
        box: (4,) XYXY.
    """
    x1, y1, x2, y2 = np.clip(np.rint(box), 0, [*hu.shape[::-1]] * 2).astype(int)
    part = hu[y1 : y2 + 1, x1 : x2 + 1]
    return LUNG if part.size and np.median(part) < -500 else SOFT_TISSUE


def draw_key_slice(
    axes: Axes,
    hu: np.ndarray,
    ground_truths: np.ndarray,
    detections: np.ndarray,
    window: tuple[float, float] = SOFT_TISSUE,
    *,
    crop: np.ndarray | None = None,
    subject: np.ndarray | None = None,
) -> None:
    """Draw a key slice with its lesions (green) and detections with their scores (orange, dashed).

    Args:
        axes: matplotlib's, to draw on.
        hu: (H, W) in HU.
        ground_truths: (m, 4) XYXY.
        detections: (n, 5) XYXY and score.
        window: HU shown as black and white; the default is soft tissue.
        crop: (4,) XYXY, what is shown; None is all.
        subject: (4,) XYXY, a box to frame by corners.
    """
    height, width = hu.shape
    # Boxes are continuous: pixel i covers [i, i + 1].
    axes.imshow(hu, cmap="gray", vmin=window[0], vmax=window[1], extent=(0, width, height, 0), interpolation="nearest")
    axes.set_axis_off()
    left, top, right, bottom = (0, 0, width, height) if crop is None else crop
    axes.set(xlim=(left, right), ylim=(bottom, top), autoscale_on=False)  # whatever is drawn outside

    def outline(x1, y1, x2, y2, **style):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.5, **style))

    for box in np.reshape(ground_truths, (-1, 4)):
        outline(*box, edgecolor=GROUND_TRUTH)
    for *box, score in np.reshape(detections, (-1, 5)):
        box = np.clip(box, -_FAR, _FAR)
        outline(*box, edgecolor=DETECTION, linestyle="--")
        axes.text(box[0], box[1] - 1, f"{score:.2f}", color=DETECTION, fontsize=8, va="bottom", clip_on=True)
    if subject is not None:
        subject = np.clip(subject, -_FAR, _FAR)
        _draw_corners(axes, subject, margin=0.01 * max(hu.shape) + 0.1 * (subject[2:] - subject[:2]).max())


def _draw_corners(axes: Axes, box: np.ndarray, margin: float) -> None:
    x1, y1, x2, y2 = box
    for x, towards_x in ((x1 - margin, 1), (x2 + margin, -1)):
        for y, towards_y in ((y1 - margin, 1), (y2 + margin, -1)):
            length = 2 * margin
            xs, ys = (x + towards_x * length, x, x), (y, y, y + towards_y * length)
            axes.plot(xs, ys, color=SUBJECT, linewidth=1.5)


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
        axes.set_title(plain(title), fontsize=8)
    return figure


def plain(text: str) -> str:
    """Change text so that matplotlib shows it: it would set what stands between $ as a formula, hide labels that begin
    with _, and leave no room for a chart beside a long path."""
    text = text if len(text) <= _LONGEST_LABEL else f"...{text[3 - _LONGEST_LABEL :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _colour(index: int) -> tuple:
    return colormaps["tab10"](index % 10)
