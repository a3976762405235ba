"""The report: one HTML file that needs neither network nor script, and its pictures as PNG."""

import base64
import io
import itertools
import logging
import os
from collections.abc import Callable

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from tqdm import tqdm

from ...files import replacing
from ..bootstrap import ResampledFroc, percentile_interval
from ..froc_evaluation import CONFIDENCE, FrocEvaluation
from ..split_evaluation import SplitEvaluation
from .figures import froc_axis, plain, plot_froc, plot_scores, plot_strata
from .gallery import SHOWN_FPS, Case, case_panels, chosen_cases, plot_panel, plot_panels
from .tables import comparison_rows, interval_text, percent, scored_parts

# Dataset dict -> (D, H, W) HU and the mm between its slices; raises OSError or ValueError where there are none.
SliceLoader = Callable[[dict], tuple[np.ndarray, float]]


def write_report(
    folder: str,
    title: str,
    evaluations: dict[str, SplitEvaluation],
    summaries: dict[str, dict],
    comparison: dict | None = None,
    *,
    load_slices: SliceLoader | None = None,
    gallery: int = 8,
) -> str:
    """Write ``report.html`` and ``pictures/*.png``.

    Args:
        folder: where to.
        title: of the page, such as the ground truth's name.
        evaluations: by name, on the same images; the gallery is about the first, with the others beside it.
        summaries: of the evaluations.
        comparison: of the first two, see :func:`.compare`.
        load_slices: None leaves the gallery out.
        gallery: most cases in each part of the gallery.

    Returns:
        the path of the report.
    """
    os.makedirs(os.path.join(folder, "pictures"), exist_ok=True)
    pictures = Pictures(os.path.join(folder, "pictures"))
    first = next(iter(summaries.values()))
    page = (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            first=first,
            rule=str(next(iter(evaluations.values())).rule),
            summaries=summaries,
            parts={name: list(scored_parts(summary)) for name, summary in summaries.items()},
            interval=interval_text,
            comparison=None if comparison is None else list(comparison_rows(comparison, first)),
            charts=_charts(evaluations, summaries, pictures),
            gallery=None if load_slices is None else _gallery(evaluations, load_slices, gallery, pictures),
            shown_fps=SHOWN_FPS,
        )
    )
    return write_page(folder, page)


def environment() -> Environment:
    """For the templates beside this file."""
    made = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)
    made.filters |= {"percent": percent, "number": _number}
    return made


def write_page(folder: str, page: str) -> str:
    """Write ``report.html`` in one step; returns its path."""
    path = os.path.join(folder, "report.html")
    with replacing(path) as part, open(part, "w", encoding="utf-8") as f:
        f.write(page)
    return path


class Pictures:
    """Writes figures as PNG, and gives them as data URIs for the page."""

    def __init__(self, folder: str):
        self._folder = folder

    def chart(self, name: str, figure: Figure) -> str:
        """Save a chart, and give it in vectors for the page."""
        self.save(name, figure)
        with matplotlib.rc_context({"svg.hashsalt": name}):  # the same bytes each time
            return _data_uri(figure, "svg", "svg+xml", metadata={"Date": None})

    def photograph(self, figure: Figure) -> str:
        """Give a picture in pixels for the page, without saving it."""
        return _data_uri(figure, "jpeg", "jpeg", pil_kwargs={"quality": 85})

    def save(self, name: str, figure: Figure) -> None:
        figure.savefig(os.path.join(self._folder, f"{name}.png"), dpi=200)


def _data_uri(figure: Figure, kind: str, mime: str, **options) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return f"data:image/{mime};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _charts(evaluations: dict[str, SplitEvaluation], summaries: dict[str, dict], pictures: Pictures) -> dict:
    curves = {name: evaluation.curve() for name, evaluation in evaluations.items()}
    highest = max(1, *next(iter(evaluations.values())).fps_per_image)
    bands = {name: band(evaluation, froc_axis(highest)) for name, evaluation in evaluations.items()}
    averages = {
        name: {
            f"{group}: {stratum}" if group else "all": (scores["average"], *scores["average_interval"])
            for group, stratum, scores in scored_parts(summary)
        }
        for name, summary in summaries.items()
    }
    return {
        "froc": pictures.chart("froc", plot_froc(curves, bands, highest)),
        "strata": pictures.chart("strata", plot_strata(averages)),
        "scores": {
            name: pictures.chart(f"scores_{i}", _plot_scores(evaluation, summaries[name]))
            for i, (name, evaluation) in enumerate(evaluations.items())
        },
    }


def band(evaluation: FrocEvaluation, levels: np.ndarray) -> np.ndarray:
    """(len(levels), 2) limits of the confidence band of the FROC curve."""
    resampled = ResampledFroc(evaluation.matches, evaluation.patient, evaluation.weights, levels)
    return percentile_interval(resampled.sensitivities(), CONFIDENCE)


def _plot_scores(evaluation: SplitEvaluation, summary: dict) -> Figure:
    matches = evaluation.matches
    first_hit = np.zeros(len(matches.score), dtype=bool)
    first_hit[matches.hit_by[matches.hit_by < len(matches.score)]] = True
    kinds = {
        "first to hit a lesion": matches.score[first_hit],
        "repeat hit": matches.score[~first_hit & ~matches.false_positive],
        "false positive": matches.score[matches.false_positive],
    }
    return plot_scores(kinds, [point["score_threshold"] for point in summary["operating_points"]])


def _gallery(evaluations: dict[str, SplitEvaluation], load: SliceLoader, count: int, pictures: Pictures) -> list[dict]:
    first = next(iter(evaluations.values()))
    sections = list(chosen_cases(first, count))
    unreadable = []
    with tqdm(total=sum(len(cases) for _, cases in sections), desc="gallery") as progress:
        gallery = []
        for title, cases in sections:
            shown = []
            for i, case in enumerate(cases, 1):
                name = f"{title.lower().replace(' ', '_')}_{i:02d}"
                shown.append(_show(case, name, evaluations, load, pictures, unreadable))
                progress.update()
            gallery.append({"title": title, "cases": shown})
    if unreadable:
        logging.getLogger(__name__).warning(
            f"{len(unreadable)} of the gallery's key slices cannot be shown; the first one: {unreadable[0]}"
        )
    return gallery


def _show(case: Case, name: str, evaluations: dict, load: SliceLoader, pictures: Pictures, unreadable: list) -> dict:
    image = next(iter(evaluations.values())).images[case.image]
    shown = {"image": str(image["image_id"]), "caption": case.caption, "rows": [], "error": None}
    try:
        stack, interval = load(image)
    except (OSError, ValueError) as error:
        unreadable.append(str(error))
        return {**shown, "error": str(error)}
    rows = case_panels(case, evaluations, stack, interval)
    figure = plot_panels(list(rows))
    figure.suptitle(plain(f"{image['image_id']}: {case.caption}"), fontsize=9)
    pictures.save(name, figure)
    tiles = [[(panel.title, pictures.photograph(plot_panel(panel))) for panel in row] for row in rows]
    return {**shown, "rows": tiles if len(evaluations) > 1 else [list(itertools.chain.from_iterable(tiles))]}


def _number(value: float, digits: int = 3) -> str:
    return "-" if value != value else f"{value:.{digits}g}"
