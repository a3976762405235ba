"""Figures on volumes: written out by hand, and against a loop over resamples."""

import numpy as np
import pytest

from a3d_det2.evaluation.froc_evaluation import compare
from a3d_det2.evaluation.volumes import RULES, FoundVolume, TrueVolume, VolumeEvaluation
from a3d_det2.evaluation.volumes.agreement import Agreement
from tests.evaluation.volumes.cases import random_case


def boxes(count: int, first: int = 0) -> np.ndarray:
    corner = np.arange(first, first + count)[:, None] * [20, 0, 0]
    return np.concatenate([corner, corner + 9], axis=1).astype(float)


@pytest.fixture
def case():
    """Four lesions in two volumes of one patient, and two volumes without any."""
    volumes = [
        TrueVolume(
            "a", boxes(3), "p", long_mm=[5, 15, 40], short_mm=[4, 10, 30], heights=[0.1, 0.5, 0.9], to_mm=np.eye(3)
        ),
        TrueVolume("b", boxes(1), "p", long_mm=[20], heights=[0.4], to_mm=np.diag([1, 1, 5.0])),
        TrueVolume("c", boxes(0), "q"),
        TrueVolume("d", boxes(0), "r"),
    ]
    found = [
        FoundVolume("a", boxes(3), [0.9, 0.8, 0.2], long_mm=[6, 15, 38], short_mm=[4, 10, 31]),
        FoundVolume("b", boxes(2, 5), [0.7, 0.3]),
        FoundVolume("c", boxes(2), [0.85, 0.1]),
        FoundVolume("d", boxes(0), []),
    ]
    return volumes, found


def test_by_hand(case):
    evaluation = VolumeEvaluation(*case, RULES["iou3d_0.5"], fps_per_volume=(0.25, 0.5, 1.0))
    summary = evaluation.summary()
    # By falling score: hit, miss in c, hit, miss, miss, hit, miss in c; 4 volumes, 4 lesions.
    assert summary["sensitivity"] == [0.5, 0.5, 0.75]
    assert summary["average"] == pytest.approx(1.75 / 3)
    assert (summary["num_images"], summary["num_lesions"], summary["num_volumes_without_lesions"]) == (4, 4, 2)
    points = {point["level"]: point for point in summary["operating_points"]}
    assert [points[level]["score_threshold"] for level in (0.25, 0.5, 1.0)] == [0.8, 0.7, 0.1]
    assert [points[level]["healthy_with_false_positives"] for level in (0.25, 0.5, 1.0)] == [0.5, 0.5, 0.5]
    strata = summary["strata"]
    assert [strata["lesion diameter"][name]["num_lesions"] for name in ("< 10 mm", "10 to 30 mm", "> 30 mm")] == [
        1,
        2,
        1,
    ]
    assert strata["lesion diameter"]["< 10 mm"]["sensitivity"] == [1, 1, 1]
    assert strata["slice interval"]["<= 2 mm"]["num_images"] == 1
    assert strata["slice interval"][">= 4 mm"]["sensitivity"] == [0, 0, 0]
    assert [one["num_lesions"] for one in strata["part of the volume"].values()] == [1, 2, 1]
    long_axis = summary["agreement"]["long axis, mm"]
    assert long_axis["num_lesions"] == 3
    assert long_axis["bias"] == pytest.approx((1 + 0 - 2) / 3)
    assert "volume, mm3" not in summary["agreement"]


def test_limits_of_agreement():
    one = Agreement(np.array([10.0, 20, 30]), np.array([11.0, 20, 32]))
    spread = np.std([1, 0, 2], ddof=1) * 1.96
    assert one.summary() == {"num_lesions": 3, "bias": 1.0, "limits": pytest.approx([1 - spread, 1 + spread])}
    alone = Agreement(np.array([10.0]), np.array([11.0])).summary()
    assert alone["bias"] == 1.0
    assert np.isnan(alone["limits"]).all()


def test_nothing_anywhere():
    volumes, found = [TrueVolume("a", boxes(0))], [FoundVolume("a", boxes(0), [])]
    for name in ("iou3d_0.3", "iobb3d_0.3", "luna16", "point_in_mask", "picai", "p3d_0.5"):
        summary = VolumeEvaluation(volumes, found, RULES[name], resamples=10).summary()
        assert np.isnan(summary["average"])
        assert summary["operating_points"][0]["healthy_with_false_positives"] == 0
        assert summary["agreement"] == {}
    lesion = [TrueVolume("a", boxes(1))]
    assert VolumeEvaluation(lesion, found, RULES["iou3d_0.3"], resamples=10).summary()["average"] == 0


@pytest.mark.parametrize("seed", range(20))
def test_resamples_are_volumes_drawn_again(seed):
    """The interval's resamples, against volumes that are written down as often as they are drawn."""
    volumes, found = random_case(seed, ties=False, excluded=False)
    evaluation = VolumeEvaluation(volumes, found, RULES["iou3d_0.3"], resamples=8, seed=seed)
    if not evaluation.matches.num_lesions:
        return
    patients = list(dict.fromkeys(volume.patient for volume in volumes))
    for weights, values in zip(evaluation.weights, evaluation.resampled(), strict=True):
        drawn = [
            (f"{volume.id} {copy}", volume, one)
            for volume, one in zip(volumes, found, strict=True)
            for copy in range(weights[patients.index(volume.patient)])
        ]
        again = VolumeEvaluation(
            [TrueVolume(name, volume.boxes) for name, volume, _ in drawn],
            [FoundVolume(name, one.boxes, one.scores) for name, _, one in drawn],
            RULES["iou3d_0.3"],
            resamples=0,
        )
        np.testing.assert_allclose(values, again.sensitivities(), atol=1e-12)


def test_two_results_are_compared(case):
    volumes, found = case
    first = VolumeEvaluation(volumes, found, RULES["iou3d_0.5"], resamples=50)
    worse = [found[0], *(FoundVolume(one.id, boxes(0), []) for one in found[1:])]
    second = VolumeEvaluation(volumes, worse, RULES["iou3d_0.5"], resamples=50)
    assert compare(first, second)["average"] == pytest.approx(first.sensitivities()[-1] - second.sensitivities()[-1])
    other = VolumeEvaluation(volumes, worse, RULES["iou3d_0.1"], resamples=50)
    with pytest.raises(ValueError, match="compared by the same rule"):
        compare(first, other)
