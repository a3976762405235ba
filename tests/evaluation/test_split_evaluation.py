import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from a3d_det2.data.dl_info import LESION_TYPES
from a3d_det2.evaluation.bootstrap import percentile_interval, resample_patients
from a3d_det2.evaluation.detection_reader import Detections
from a3d_det2.evaluation.froc import froc_sensitivities
from a3d_det2.evaluation.matching import MatchRule
from a3d_det2.evaluation.report.tables import comparison_table, csv_rows, score_table
from a3d_det2.evaluation.split_evaluation import SplitEvaluation, compare, nan_to_none


def split(patients=30, seed=0):
    """Two key slices a patient, 2 mm and 5 mm, with up to two lesions each."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(2 * patients):
        corner = rng.integers(0, 400, (rng.integers(0, 3), 2))
        boxes = np.concatenate([corner, corner + rng.integers(10, 80, corner.shape)], axis=1).astype(float)
        images.append(
            {
                "image_id": f"{i}.png",
                "file_name": f"{i}/050.png",
                "height": 512,
                "width": 512,
                "patient": i // 2,
                "slice_interval": (2.0, 5.0)[i % 2],
                "slice_range": (40, 60),
                "spacing": (0.8, 0.8),
                "annotations": [
                    {"bbox": box, "diameters": (box[2] - box[0], 1.0), "lesion_type": int(rng.integers(1, 9))}
                    for box in boxes.tolist()
                ],
            }
        )
    return images


def detect(images, sharpness, seed=1):
    """Detections that find a lesion with a score of about ``sharpness``, and ten false positives an image below 1."""
    rng = np.random.default_rng(seed)
    index, boxes, scores = [], [], []
    for i, image in enumerate(images):
        for lesion in image["annotations"]:
            index.append(i)
            boxes.append(np.array(lesion["bbox"]) + rng.normal(0, 1, 4))
            scores.append(rng.normal(sharpness, 0.2))
        corner = rng.integers(0, 400, (10, 2))
        index += [i] * 10
        boxes += list(np.concatenate([corner, corner + rng.integers(5, 60, (10, 2))], axis=1).astype(float))
        scores += rng.random(10).tolist()
    return Detections(np.array(index), np.array(boxes), np.array(scores), [None] * len(index), [])


@pytest.fixture(scope="module")
def images():
    return split()


@pytest.fixture(scope="module")
def summary(images):
    return SplitEvaluation(images, detect(images, 0.8), lesion_types=LESION_TYPES, resamples=200).summary()


def test_sensitivities_are_those_of_froc(images, summary):
    found = detect(images, 0.8)
    arrays = [np.column_stack([found.boxes, found.scores])[found.image == i] for i in range(len(images))]
    lesions = [np.array([lesion["bbox"] for lesion in image["annotations"]]) for image in images]
    expected = froc_sensitivities(arrays, lesions)
    assert summary["sensitivity"] == expected.tolist()
    assert summary["average"] == pytest.approx(expected[:4].mean())
    thick = summary["strata"]["slice thickness"]["> 2 mm"]
    assert thick["sensitivity"] == froc_sensitivities(arrays[1::2], lesions[1::2]).tolist()
    assert thick["num_images"] == 30


def test_intervals_hold_what_they_are_of(summary):
    for scores in (summary, *(s for strata in summary["strata"].values() for s in strata.values())):
        for value, (low, high) in zip(
            [*scores["sensitivity"], scores["average"]],
            [*scores["sensitivity_interval"], scores["average_interval"]],
            strict=True,
        ):
            assert math.isnan(value) or math.isnan(low) or low <= value <= high
    low, high = summary["average_interval"]
    assert 0.02 < high - low < 0.3


def test_strata_add_up(summary):
    groups = {name: dict(strata) for name, strata in summary["strata"].items()}
    assert groups["slice thickness"].pop("5 mm")["num_images"] == 30  # of those above 2 mm
    for strata in groups.values():
        assert sum(scores["num_lesions"] for scores in strata.values()) == summary["num_lesions"]
    assert sum(s["num_images"] for s in groups["slice thickness"].values()) == summary["num_images"]
    assert {s["num_images"] for s in summary["strata"]["lesion type"].values()} == {summary["num_images"]}


def test_operating_points(summary):
    points = summary["operating_points"]
    assert [point["level"] for point in points] == summary["fps_per_image"]
    for point, sensitivity in zip(points, summary["sensitivity"], strict=True):
        assert point["fps_per_image"] <= point["level"]
        assert point["sensitivity"] == sensitivity  # no two scores are equal here
    assert summary["last_fps_per_image"] <= 10 < points[-1]["level"]
    assert points[-1]["detections_per_image"] == pytest.approx(summary["num_detections"] / summary["num_images"])


def test_the_average_is_over_the_published_levels_whatever_is_reported(images):
    found = detect(images, 0.8)
    few = SplitEvaluation(images, found, fps_per_image=[3], resamples=50).summary()
    many = SplitEvaluation(images, found, resamples=50).summary()
    assert (few["average"], few["average_interval"]) == (many["average"], many["average_interval"])
    assert len(few["sensitivity"]) == len(few["sensitivity_interval"]) == len(few["operating_points"]) == 1


def test_without_patients_images_are_resampled(images):
    bare = [{key: value for key, value in image.items() if key != "patient"} for image in images]
    evaluation = SplitEvaluation(bare, detect(images, 0.8), resamples=10)
    summary = evaluation.summary()
    assert (summary["resampled"], summary["num_patients"]) == ("images", None)
    assert summary["warnings"][0].startswith("The ground truth does not say which images are of the same patient.")
    assert evaluation.weights.shape == (10, 60)
    assert SplitEvaluation(images, detect(images, 0.8), resamples=10).weights.shape == (10, 30)


def test_patients_of_some_images_only(images):
    mixed = [*images[:-1], {**images[-1], "patient": None}]
    with pytest.raises(ValueError, match="1 of 60 images have none; '59.png' is the first"):
        SplitEvaluation(mixed, detect(images, 0.8))


def test_patients_of_several_kinds(images):
    mixed = [{**image, "patient": (1, "1")[i % 2]} for i, image in enumerate(images)]
    assert SplitEvaluation(mixed, detect(images, 0.8), resamples=3).weights.shape == (3, 2)


def test_a_level_beyond_all_numbers(images):
    summary = SplitEvaluation(images, detect(images, 0.8), fps_per_image=[8, 1e30], resamples=50).summary()
    low, high = summary["sensitivity_interval"][1]
    assert low <= summary["sensitivity"][1] <= high or math.isnan(low)


@pytest.mark.parametrize("case", ["no detections", "no lesions", "no images", "no resamples"])
def test_degenerate(images, case):
    found = detect(images, 0.8)
    if case == "no images":
        images = []
    if case in ("no images", "no detections"):
        found = Detections(np.zeros(0, dtype=int), np.zeros((0, 4)), np.zeros(0), [], [])
    if case == "no lesions":
        images = [{**image, "annotations": []} for image in images]
    evaluation = SplitEvaluation(
        images, found, lesion_types=LESION_TYPES, resamples=0 if case == "no resamples" else 20
    )
    summary = evaluation.summary()
    if case == "no detections":
        assert summary["sensitivity"] == [0] * 6
        assert (summary["AP50"], summary["last_fps_per_image"]) == (0, 0)
        assert math.isnan(summary["operating_points"][0]["score_threshold"])
    elif case != "no resamples":
        assert math.isnan(summary["average"])
        assert math.isnan(summary["AP50"])
    assert math.isnan(summary["average_interval"][0])
    json.dumps(nan_to_none(summary), allow_nan=False)
    assert "AP50" in score_table(summary)
    assert compare(evaluation, evaluation)["strata"].keys() == summary["strata"].keys()


def test_a_result_does_not_differ_from_itself(images):
    evaluation = SplitEvaluation(images, detect(images, 0.8), resamples=100)
    comparison = compare(evaluation, evaluation)
    assert comparison["average"] == 0
    assert comparison["average_p_value"] == 1
    assert comparison["sensitivity"] == [0] * 6
    assert np.isnan(comparison["average_interval"]).all()


def test_a_clear_difference(images):
    good, bad = (SplitEvaluation(images, detect(images, s, seed), resamples=199) for s, seed in ((0.9, 1), (0.6, 2)))
    comparison = compare(good, bad)
    assert comparison["average"] == pytest.approx(good.summary()["average"] - bad.summary()["average"])
    assert comparison["average"] > 0.1
    assert 0 < comparison["average_interval"][0] < comparison["average"] < comparison["average_interval"][1]
    assert comparison["average_p_value"] == 2 / 200
    other = compare(bad, good)
    assert other["average_interval"] == pytest.approx([-x for x in comparison["average_interval"][::-1]])
    assert other["average_p_value"] == comparison["average_p_value"]
    assert "+" in comparison_table(comparison, good.summary())


def test_pairing_narrows_the_difference(images):
    """Two models that miss the same lesions differ less than their intervals would let one think."""
    found = detect(images, 0.8)
    other = Detections(found.image, found.boxes, found.scores + 0.01 * found.boxes[:, 0] / 512, found.masks, [])
    first, second = (SplitEvaluation(images, d, resamples=200) for d in (found, other))
    low, high = compare(first, second)["average_interval"]
    alone = np.diff(percentile_interval(first.resampled())[-1])
    assert high - low < 0.5 * alone


@pytest.mark.parametrize(
    "change", [{"rule": MatchRule(threshold=0.3)}, {"fps_per_image": [1]}, {"resamples": 5}, {"seed": 3}]
)
def test_only_what_was_scored_alike_is_compared(images, change):
    found = detect(images, 0.8)
    with pytest.raises(ValueError, match=f"by the same {next(iter(change))}"):
        compare(
            SplitEvaluation(images, found, resamples=9), SplitEvaluation(images, found, **{"resamples": 9, **change})
        )


def test_rule_reaches_the_matches(images):
    found = detect(images, 0.8)
    strict = SplitEvaluation(images, found, rule=MatchRule(threshold=0.95), resamples=0).summary()
    assert strict["average"] < SplitEvaluation(images, found, resamples=0).summary()["average"]
    how = {"plus_one": True, "repeat_hits": "ignored", "assignment": "several"}
    assert strict["rule"] == {"overlap": "iou", "threshold": 0.95, **how}


def test_masks(images):
    """Rectangles in the corner of each lesion's mask, shorter and of another height each time."""

    def rle(x1, y1, x2, y2):
        mask = np.zeros((512, 512), dtype=np.uint8, order="F")
        mask[y1:y2, x1:x2] = 1
        return coco_mask.encode(mask)

    records, index, boxes, masks = [], [], [], []
    for i, image in enumerate(images[:12]):
        x, height = 10 * i, 4 + 4 * (i % 3)
        lesion = {"bbox": [0, 0, 199, 19], "diameters": (100.0 + 20 * i, 1.0), "segmentation": rle(0, 0, 200, 20)}
        records.append({**image, "spacing": (0.5, 0.8), "annotations": [lesion]})
        index.append(i)
        boxes.append(lesion["bbox"])
        masks.append(rle(x, 0, 200, height))
    found = Detections(np.array(index), np.array(boxes, dtype=float), np.ones(12), masks, [])
    scores = SplitEvaluation(records, found, resamples=200).summary()["masks"]
    assert scores["num_lesions"] == 12
    pixels = [(200 - 10 * i) * (4 + 4 * (i % 3)) for i in range(12)]
    dice = [2 * n / (n + 4000) for n in pixels]
    length = [np.hypot(0.5 * (199 - 10 * i), 0.8 * (3 + 4 * (i % 3))) for i in range(12)]
    error = np.array(length) - 0.5 * (100 + 20 * np.arange(12))
    assert min(error) < 0 < max(error)
    for name, values in (
        ("dice", dice),
        ("diameter_error_mm", error),
        ("absolute_diameter_error_mm", np.abs(error)),
    ):
        assert scores[name]["mean"] == pytest.approx(np.mean(values))
        assert scores[name]["median"] == pytest.approx(np.median(values))
        # Of six patients with two images each.
        means = np.mean(np.reshape(values, (6, 2)), axis=1)
        expected = percentile_interval((resample_patients(6, 200) * means).mean(axis=1))
        assert scores[name]["mean_interval"] == pytest.approx(expected)


def test_tables(summary):
    text = score_table(summary)
    assert f"{100 * summary['average']:.2f}" in text
    assert "slice thickness: <= 2 mm" in text
    header, *rows = csv_rows({"a": summary})
    assert len({len(row) for row in [header, *rows]}) == 1
    assert ["a", "", "all", summary["num_lesions"], "average", summary["average"]] == rows[6][:6]


def test_same_seed_same_intervals(images):
    first, second, other = (
        nan_to_none(SplitEvaluation(images, detect(images, 0.8), resamples=50, seed=seed).summary())
        for seed in (4, 4, 5)
    )
    assert first == second
    assert first["sensitivity_interval"] != other["sensitivity_interval"]
