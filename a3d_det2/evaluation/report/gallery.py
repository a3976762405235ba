"""Which key slices of a result are worth looking at, and their pictures with neighbours, beside other results."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ..froc import AVERAGED_FPS
from ..split_evaluation import SplitEvaluation
from ..strata import long_diameter
from .figures import display_window, draw_key_slice, plain

SHOWN_FPS = 1  # false positives per image, of each result, with the detections that are shown


@dataclass(frozen=True)
class Case:
    """A place on a key slice.

    Attributes:
        image: index of the image.
        box: (4,) XYXY, what the case is about.
        caption: what there is to see.
        rank: of a detection of the first result that has to be shown, see :class:`.Matches`.
    """

    image: int
    box: np.ndarray
    caption: str
    rank: int | None = None


def worst_misses(evaluation: SplitEvaluation, count: int) -> list[Case]:
    """Lesions that are not found at 4 false positives per image: the one found last or never first, large ones before
    small ones; one of each image."""
    matches = evaluation.matches
    curve = evaluation.curve()
    kept = np.searchsorted(curve.fps_per_image, max(AVERAGED_FPS), side="right")
    lesions = [(image, lesion) for image in evaluation.images for lesion in image.get("annotations", ())]
    width, height = (evaluation.lesion_boxes[:, 2:] - evaluation.lesion_boxes[:, :2]).T
    cases = []
    for index in np.lexsort([-width * height, -matches.hit_by]):
        image, rank = int(matches.lesion_image[index]), int(matches.hit_by[index])
        if len(cases) == count or rank < kept:
            break
        if any(case.image == image for case in cases):
            continue
        diameter = long_diameter(*lesions[index])
        size = "" if np.isnan(diameter) else f" of {diameter:.0f} mm"
        if rank == len(matches.score):
            found = "never found"
        else:
            found = f"found with a score of {matches.score[rank]:.3g}, at {curve.fps_per_image[rank]:.1f} FPs per image"
        cases.append(Case(image, evaluation.lesion_boxes[index], f"lesion{size}, {found}"))
    return cases


def strongest_false_positives(evaluation: SplitEvaluation, count: int) -> list[Case]:
    """The false positives with the highest scores, at most one of each image."""
    matches, cases = evaluation.matches, []
    for rank in np.flatnonzero(matches.false_positive):
        if len(cases) == count:
            break
        image, score = int(matches.image[rank]), float(matches.score[rank])
        box = evaluation.detections.boxes[matches.detection[rank]]
        if np.isfinite(box).all() and all(case.image != image for case in cases):
            cases.append(Case(image, box, f"false positive with a score of {score:.3g}", int(rank)))
    return cases


def random_sample(evaluation: SplitEvaluation, count: int, seed: int = 0) -> list[Case]:
    """Key slices drawn at random; the same seed draws the same."""
    images = len(evaluation.images)
    chosen = np.sort(np.random.default_rng(seed).choice(images, min(count, images), replace=False))
    cases = []
    for image in chosen:
        of_image = np.flatnonzero(evaluation.matches.lesion_image == image)
        if len(of_image):
            box, caption = evaluation.lesion_boxes[of_image[0]], f"{len(of_image)} annotated"
        else:
            width, height = evaluation.images[image]["width"], evaluation.images[image]["height"]
            box, caption = np.array([0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]), "none annotated"
        cases.append(Case(int(image), box, caption))
    return cases


class Panel(NamedTuple):
    """One picture of a case, with its title.

    Attributes:
        title: above it.
        arguments: of :func:`draw_key_slice`.
    """

    title: str
    arguments: dict


def case_panels(
    case: Case, evaluations: dict[str, SplitEvaluation], stack: np.ndarray, interval: float
) -> tuple[list[Panel], list[Panel]]:
    """The key slice for each result, and the place of the case on the slices around it.

    Args:
        case: of the first result.
        evaluations: by name.
        stack: (D, H, W) HU, the key slice in the middle.
        interval: mm between its slices.

    Returns:
        a panel for each result, and one for each slice of the stack.
    """
    first = next(iter(evaluations.values()))
    lesions = first.lesion_boxes[first.matches.lesion_image == case.image]
    key = len(stack) // 2
    window = display_window(stack[key], case.box)
    results = []
    for name, evaluation in evaluations.items():
        matches = evaluation.matches
        kept = np.searchsorted(evaluation.curve().fps_per_image, SHOWN_FPS, side="right")
        ranks = np.flatnonzero(matches.image[:kept] == case.image)
        if evaluation is first and case.rank is not None:
            ranks = np.union1d(ranks, case.rank)
        boxes = evaluation.detections.boxes[matches.detection[ranks]]
        found = np.column_stack([boxes, matches.score[ranks]])
        arguments = {"hu": stack[key], "ground_truths": lesions, "detections": found, "window": window}
        results.append(Panel(name, {**arguments, "subject": case.box}))
    crop = _crop(case.box, stack.shape[1:])
    slices = []
    for i, hu in enumerate(stack):
        boxes = lesions if i == key else []
        arguments = {"hu": hu, "ground_truths": boxes, "detections": [], "window": window, "crop": crop}
        slices.append(Panel("key slice" if i == key else f"{(i - key) * interval:+g} mm", arguments))
    return results, slices


def _crop(box: np.ndarray, shape: tuple[int, int], smallest: float = 96) -> np.ndarray:
    """A square around a box with twice its length, within the image."""
    centre = (box[:2] + box[2:]) / 2
    side = min(max(2 * (box[2:] - box[:2]).max(), smallest), *shape)
    low = np.clip(centre - side / 2, 0, np.array(shape[::-1]) - side)
    return np.concatenate([low, low + side])


def plot_panels(rows: list[list[Panel]], columns: int = 6) -> Figure:
    """All panels of a case in one figure, each list beginning a row; one row where one is enough."""
    if sum(map(len, rows)) <= columns:
        rows = [list(itertools.chain.from_iterable(rows))]
    lines = [row[i : i + columns] for row in rows for i in range(0, len(row), columns)]
    columns = max(map(len, lines))
    figure = Figure(figsize=(2.4 * columns, 2.6 * len(lines)), layout="constrained")
    for i, line in enumerate(lines):
        for j, (title, arguments) in enumerate(line):
            axes = figure.add_subplot(len(lines), columns, i * columns + j + 1)
            draw_key_slice(axes, **arguments)
            axes.set_title(plain(title), fontsize=8)
    return figure


def plot_panel(panel: Panel) -> Figure:
    """One panel alone, without margins and title: a whole slice of 512 pixels in about its own size, others smaller."""
    height, width = panel.arguments["hu"].shape
    crop = panel.arguments.get("crop")
    if crop is not None:
        width, height = crop[2] - crop[0], crop[3] - crop[1]
    figure = Figure(figsize=(3.2, 3.2 * height / width), dpi=160 if crop is None else 90)
    draw_key_slice(figure.add_axes((0, 0, 1, 1)), **panel.arguments)
    return figure


def chosen_cases(evaluation: SplitEvaluation, count: int) -> Iterator[tuple[str, list[Case]]]:
    """Title and cases of each part of the gallery."""
    yield "Worst misses", worst_misses(evaluation, count)
    yield "Strongest false positives", strongest_false_positives(evaluation, count)
    yield "Random sample", random_sample(evaluation, count)
