"""The report on volumes: one HTML file that needs neither network nor script, and its pictures as PNG."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from ..matching import is_box
from ..volumes.agreement import Agreement
from ..volumes.evaluation import VolumeEvaluation
from .figures import plot_froc
from .page import Pictures, band, environment, froc_axis, write_page
from .tables import interval_text, percent, scored_parts

# Place of the volume, of the lesion within it, and whether it is of the truth or was found -> picture in three planes;
# raises OSError or ValueError where there is none.
Draw = Callable[[int, int, bool], Figure]


def volume_table(summaries: Mapping[str, Mapping[str, dict]]) -> str:
    """Sensitivities of each rule and result in percent, as text."""
    first = next(iter(next(iter(summaries.values())).values()))
    rows = [
        [
            rule,
            name,
            *(percent(value) for value in (*summary["sensitivity"], summary["average"])),
            interval_text(summary["average_interval"]),
        ]
        for rule, results in summaries.items()
        for name, summary in results.items()
    ]
    levels = [f"{level:g}" for level in first["fps_per_image"]]
    header = ["rule", "result", *levels, "mean", f"{100 * first['confidence']:g} % interval"]
    return tabulate(rows, header, disable_numparse=True)


def strata_table(summary: Mapping) -> str:
    """Sensitivities of each stratum in percent, as text."""
    rows = [
        [
            f"{group}: {name}" if group else name,
            scores["num_images"],
            scores["num_lesions"],
            *(percent(value) for value in (*scores["sensitivity"], scores["average"])),
        ]
        for group, name, scores in scored_parts(summary)
    ]
    levels = [f"{level:g}" for level in summary["fps_per_image"]]
    return tabulate(rows, ["", "volumes", "lesions", *levels, "mean"], disable_numparse=True)


def write_volume_report(
    folder: str,
    title: str,
    evaluations: Mapping[str, Mapping[str, VolumeEvaluation]],
    summaries: Mapping[str, Mapping[str, dict]],
    warnings: Iterable[str] = (),
    *,
    draw: Draw | None = None,
    gallery: int = 6,
) -> str:
    """Write ``report.html`` and ``pictures/*.png``.

    Args:
        folder: where to.
        title: of the page.
        evaluations: rule -> result -> evaluation. Strata, measurements and gallery are by the first rule, and the
            gallery of the first result.
        summaries: of the evaluations.
        warnings: to show at the top.
        draw: draws a lesion; None leaves the gallery out.
        gallery: most lesions in each part of the gallery.

    Returns:
        the path of the report.
    """
    os.makedirs(os.path.join(folder, "pictures"), exist_ok=True)
    pictures = Pictures(os.path.join(folder, "pictures"))
    rule, results = next(iter(evaluations.items()))
    page = (
        environment()
        .get_template("volumes.html")
        .render(
            title=title,
            first=next(iter(summaries[rule].values())),
            results=summaries,
            interval=interval_text,
            warnings=list(warnings),
            charts=list(_charts(evaluations, pictures)),
            parts=[(f"{name}, {rule}", list(scored_parts(summary))) for name, summary in summaries[rule].items()],
            mains=[(f"{name}, {rule}", summary) for name, summary in summaries[rule].items()],
            agreement=list(_agreement(results, rule, pictures)),
            gallery=None if draw is None else _gallery(next(iter(results.values())), draw, gallery, pictures),
        )
    )
    return write_page(folder, page)


def _charts(evaluations, pictures: Pictures):
    for rule, results in evaluations.items():
        highest = max(1, *next(iter(results.values())).fps_per_image)
        bands = {name: band(evaluation, froc_axis(highest)) for name, evaluation in results.items()}
        curves = {name: evaluation.curve() for name, evaluation in results.items()}
        yield rule, pictures.chart(f"froc_{rule}", plot_froc(curves, bands, highest, per="volume"))


def _agreement(results: Mapping[str, VolumeEvaluation], rule: str, pictures: Pictures):
    for number, (name, evaluation) in enumerate(results.items()):
        if measures := evaluation.agreement():
            yield f"{name}, {rule}", pictures.chart(f"measurements_{number}", plot_agreement(measures))


def plot_agreement(measures: Mapping[str, Agreement]) -> Figure:
    """Bland-Altman plots: the difference of each pair of measurements over their mean, bias and limits of agreement."""
    figure = Figure(figsize=(4.2 * len(measures), 3.6), layout="constrained")
    for axes, (name, one) in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures.items(), strict=True):
        axes.plot((one.found + one.truth) / 2, one.differences, "o", markersize=3, alpha=0.6)
        summary = one.summary()
        for value, style in ((summary["bias"], "-"), *((limit, "--") for limit in summary["limits"])):
            if np.isfinite(value):
                axes.axhline(value, color="black", linewidth=0.9, linestyle=style)
                axes.annotate(f"{value:.3g}", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        title, unit = name.split(", ")
        axes.set(title=f"{title}, {summary['num_lesions']} lesions", xlabel=f"mean of the two, {unit}")
        axes.set_ylabel(f"found - annotated, {unit}")
        axes.grid(alpha=0.3)
        if "volume" in title:
            axes.set_xscale("log")
    return figure


def _gallery(evaluation: VolumeEvaluation, draw: Draw, count: int, pictures: Pictures) -> list:
    matches = evaluation.matches
    missed = np.flatnonzero(matches.hit_by == len(matches.score))
    lengths = np.array([evaluation.volumes[v].long_mm[k] for v, k in _places(evaluation, missed)])
    order = missed[np.argsort(-np.nan_to_num(lengths), kind="stable")][:count]
    worst = [
        (f"{evaluation.volumes[v].id}, lesion {evaluation.volumes[v].lesions[k]}", (v, k, True))
        for v, k in _places(evaluation, order)
    ]
    first = np.cumsum([0, *(len(one.boxes) for one in evaluation.found)])
    false = []
    for rank in np.flatnonzero(matches.false_positive):
        v = int(matches.image[rank])
        k = int(matches.detection[rank] - first[v])
        if len(false) == count or not is_box(evaluation.found[v].boxes[k]):
            continue
        false.append((f"{evaluation.volumes[v].id}, score {matches.score[rank]:.3f}", (v, k, False)))
    sections = (("Lesions that nothing hits, the largest first", worst), ("Strongest false positives", false))
    return [(title, [_shown(caption, case, draw, pictures) for caption, case in cases]) for title, cases in sections]


def _places(evaluation: VolumeEvaluation, lesions: np.ndarray) -> Sequence[tuple[int, int]]:
    return [(int(evaluation.lesion_volume[i]), int(evaluation.lesion_number[i])) for i in lesions]


def _shown(caption: str, case: tuple[int, int, bool], draw: Draw, pictures: Pictures) -> tuple[str, str]:
    try:
        return caption, pictures.photograph(draw(*case))
    except (OSError, ValueError) as error:
        return f"{caption}. Not shown: {error}", ""
