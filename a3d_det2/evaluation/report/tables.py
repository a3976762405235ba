"""Scores as text and CSV."""

from collections.abc import Iterator

from tabulate import tabulate


def scored_parts(summary: dict) -> Iterator[tuple[str, str, dict]]:
    """Group, name and scores of the whole split, ("", "all"), and of each stratum with lesions."""
    yield "", "all", summary
    for group, strata in summary["strata"].items():
        for name, scores in strata.items():
            if scores["num_lesions"]:
                yield group, name, scores


def score_table(summary: dict) -> str:
    """Sensitivities in percent, with the interval of the average.

    Args:
        summary: what :meth:`.SplitEvaluation.summary` gives.
    """
    rows = [
        [
            f"{group}: {name}" if group else name,
            scores["num_images"],
            scores["num_lesions"],
            *(percent(s) for s in (*scores["sensitivity"], scores["average"])),
            interval_text(scores["average_interval"]),
        ]
        for group, name, scores in scored_parts(summary)
    ]
    levels = [f"{level:g}" for level in summary["fps_per_image"]]
    averaged = ", ".join(f"{level:g}" for level in summary["averaged_fps_per_image"])
    header = ["", "images", "lesions", *levels, "Avg.", f"{100 * summary['confidence']:g} % interval"]
    return (
        f"{tabulate(rows, header, disable_numparse=True)}\n"
        f"Avg. over {averaged}; intervals by {summary['resamples']} resamples of the {summary['resampled']}; "
        f"AP50 {percent(summary['AP50'] / 100)}"
    )


def comparison_table(comparison: dict, summary: dict) -> str:
    """Differences of the sensitivity in points, with interval and p-value.

    Args:
        comparison: what :func:`.compare` gives.
        summary: that of one of the two.
    """
    rows = [
        [f"{group}: {name}" if group else name, *texts] for group, name, *texts in comparison_rows(comparison, summary)
    ]
    header = ["", "points", f"{100 * summary['confidence']:g} % interval", "p"]
    return tabulate(rows, header, disable_numparse=True)


def comparison_rows(comparison: dict, summary: dict) -> Iterator[tuple[str, str, str, str, str]]:
    """Group, name, and as text the difference, its interval and p-value: of the whole split, then of each stratum with
    lesions."""
    keys = ("", "_interval", "_p_value")
    yield "", "Avg.", *_difference_texts(*(comparison[f"average{key}"] for key in keys))
    values = zip(*(comparison[f"sensitivity{key}"] for key in keys), strict=True)
    for level, value in zip(summary["fps_per_image"], values, strict=True):
        yield "", f"{level:g} FPs per image", *_difference_texts(*value)
    for group, name, _ in scored_parts(summary):
        if group:
            part = comparison["strata"][group][name]
            yield group, f"Avg., {name}", *_difference_texts(*(part[f"average{key}"] for key in keys))


def _difference_texts(difference: float, interval: list[float], p_value: float) -> tuple[str, str, str]:
    points = "-" if difference != difference else f"{100 * difference:+.2f}"
    return points, interval_text(interval, sign="+"), "-" if p_value != p_value else f"{p_value:.3f}"


def interval_text(interval: list[float], sign: str = "") -> str:
    """The limits of an interval in percent; "-" where the bootstrap gives none."""
    low, high = interval
    return "-" if low != low else f"{100 * low:{sign}.2f} to {100 * high:{sign}.2f}"


def percent(value: float) -> str:
    """A share in percent; "-" for NaN."""
    return "-" if value != value else f"{100 * value:.2f}"


def csv_rows(summaries: dict[str, dict]) -> list[list]:
    """A header, and a row for each result, stratum and level.

    Args:
        summaries: name of the result -> what :meth:`.SplitEvaluation.summary` gives.
    """
    rows = [["result", "group", "stratum", "num_lesions", "fps_per_image", "sensitivity", "low", "high"]]
    for result, summary in summaries.items():
        levels = [*summary["fps_per_image"], "average"]
        for group, name, scores in scored_parts(summary):
            values = [*scores["sensitivity"], scores["average"]]
            intervals = [*scores["sensitivity_interval"], scores["average_interval"]]
            for level, value, interval in zip(levels, values, intervals, strict=True):
                rows.append([result, group, name, scores["num_lesions"], level, value, *interval])
    return rows
