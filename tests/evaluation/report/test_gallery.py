import numpy as np
import pytest

from a3d_det2.evaluation.detection_reader import Detections
from a3d_det2.evaluation.report.gallery import (
    case_panels,
    plot_panel,
    plot_panels,
    random_sample,
    strongest_false_positives,
    worst_misses,
)
from a3d_det2.evaluation.split_evaluation import SplitEvaluation

SMALL, LARGE, FAR = [0, 0, 9, 9], [20, 20, 59, 59], [70, 70, 79, 79]


def image(*boxes):
    return {
        "image_id": "a.png",
        "height": 80,
        "width": 100,
        "spacing": (0.5, 0.5),
        "annotations": [{"bbox": box, "diameters": (box[2] - box[0], 1)} for box in boxes],
    }


def evaluate(images, *found):
    index, boxes, scores = zip(*found, strict=True)
    detections = Detections(np.array(index), np.array(boxes, dtype=float), np.array(scores), [None] * len(index), [])
    return SplitEvaluation([{**i, "image_id": f"{n}.png"} for n, i in enumerate(images)], detections, resamples=0)


def test_misses_are_those_found_last_or_never_large_ones_first():
    images = [image(SMALL), image(SMALL, LARGE), image(SMALL), image(SMALL)]
    # 16 false positives are four per image; the lesions of images 2 and 3 come after and before that.
    found = [(3, SMALL, 0.9), *[(0, FAR, 0.5)] * 17, (2, SMALL, 0.2)]
    cases = worst_misses(evaluate(images, *found), 8)
    assert [(case.image, case.box.tolist()) for case in cases] == [(1, LARGE), (0, SMALL), (2, SMALL)]
    assert cases[0].caption == "lesion of 20 mm, never found"
    assert cases[2].caption == "lesion of 4 mm, found with a score of 0.2, at 4.2 FPs per image"
    assert [case.image for case in worst_misses(evaluate(images, *found), 2)] == [1, 0]


def test_nothing_missed():
    assert worst_misses(evaluate([image(SMALL)], (0, SMALL, 0.9)), 8) == []


def test_strongest_false_positives_one_of_each_image():
    images = [image(SMALL), image(), image()]
    found = [(0, SMALL, 0.9), (0, FAR, 0.8), (0, LARGE, 0.7), (2, FAR, 0.3), (1, FAR, 0.6), (1, [np.nan] * 4, 0.99)]
    cases = strongest_false_positives(evaluate(images, *found), 8)
    assert [(case.image, case.box.tolist()) for case in cases] == [(0, FAR), (1, FAR), (2, FAR)]
    assert cases[0].caption == "false positive with a score of 0.8"


def test_random_sample():
    evaluation = evaluate([image(SMALL), image(), image(SMALL, LARGE)], (0, SMALL, 0.9))
    cases = random_sample(evaluation, 8)
    assert [(case.image, case.caption) for case in cases] == [
        (0, "1 annotated"),
        (1, "none annotated"),
        (2, "2 annotated"),
    ]
    assert cases[1].box.tolist() == [25, 20, 75, 60]
    chosen = [case.image for case in random_sample(evaluation, 2)]
    assert len(set(chosen)) == 2
    assert chosen == [case.image for case in random_sample(evaluation, 2)]


@pytest.fixture
def stack():
    return np.zeros((5, 80, 100), dtype=np.float32)


def test_each_result_shows_what_it_has_at_one_false_positive_per_image(stack):
    images = [image(SMALL), image(SMALL)]
    first = evaluate(images, (0, SMALL, 0.9), (0, FAR, 0.8), (1, FAR, 0.7), (0, LARGE, 0.6), (0, SMALL, 0.5))
    second = evaluate(images, (0, FAR, 0.2), (0, SMALL, 0.1))
    results, slices = case_panels(worst_misses(first, 1)[0], {"a": first, "b": second}, stack, 2.0)
    assert [panel.title for panel in results] == ["a", "b"]
    assert [panel.title for panel in slices] == ["-4 mm", "-2 mm", "key slice", "+2 mm", "+4 mm"]
    # The miss is on image 1.
    assert [panel.arguments["detections"][:, 4].tolist() for panel in results] == [[0.7], []]
    results, _ = case_panels(random_sample(first, 2)[0], {"a": first, "b": second}, stack, 2.0)
    assert [panel.arguments["detections"][:, 4].tolist() for panel in results] == [[0.9, 0.8], [0.2, 0.1]]
    assert [len(panel.arguments["ground_truths"]) for panel in slices] == [0, 0, 1, 0, 0]


def test_a_false_positive_is_shown_however_low_its_score(stack):
    images = [image(), image()]
    evaluation = evaluate(images, (0, FAR, 0.9), (0, LARGE, 0.9), (0, SMALL, 0.9), (1, FAR, 0.1))
    case = strongest_false_positives(evaluation, 2)[1]
    assert case.image == 1
    results, _ = case_panels(case, {"a": evaluation}, stack, 2.0)
    assert results[0].arguments["detections"].tolist() == [[*FAR, 0.1]]


def test_places_in_air_are_shown_in_the_lung_window(stack):
    evaluation = evaluate([image(LARGE)], (0, FAR, 0.9))
    case = worst_misses(evaluation, 1)[0]
    stack[:, 15:65, 15:65] = -800
    assert case_panels(case, {"a": evaluation}, stack, 2.0)[0][0].arguments["window"] == (-1350, 150)
    stack[:] = 40
    assert case_panels(case, {"a": evaluation}, stack, 2.0)[0][0].arguments["window"] == (-175, 275)


@pytest.mark.parametrize("box", [SMALL, LARGE, [90, 0, 99, 79], [-30, -30, -20, -20], [0, 0, 400, 400]])
def test_crops_are_square_and_within_the_image(stack, box):
    evaluation = evaluate([image()], (0, box, 0.9))
    case = strongest_false_positives(evaluation, 1)[0]
    _, slices = case_panels(case, {"a": evaluation}, stack, 2.0)
    x1, y1, x2, y2 = slices[0].arguments["crop"]
    assert x2 - x1 == y2 - y1 == 80
    assert 0 <= x1 < x2 <= 100
    assert 0 <= y1 < y2 <= 80


def test_layout(stack):
    evaluation = evaluate([image(SMALL)], (0, FAR, 0.9))
    case = worst_misses(evaluation, 1)[0]
    for models, axes in ((1, 6), (2, 7), (7, 12)):
        rows = case_panels(case, {str(i): evaluation for i in range(models)}, stack, 2.0)
        assert len(plot_panels(list(rows)).axes) == axes
    # In the proportions of what is shown.
    width, height = plot_panel(rows[0][0]).get_size_inches()
    assert height / width == pytest.approx(80 / 100)
    width, height = plot_panel(rows[1][0]).get_size_inches()
    assert height == width
