import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3d_det2.evaluation.froc import FrocCurve, froc_curve, froc_sensitivities, paired_iou

A, B, FAR = [0, 0, 9, 9], [20, 20, 29, 29], [80, 80, 89, 89]


def det(*rows):
    return np.array([[*box, score] for box, score in rows], dtype=float)


def test_iou_counts_the_last_pixel():
    iou = paired_iou(
        np.array([[0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 9]]), np.array([[0, 0, 9, 9], [0, 0, 9, 4], [10, 0, 19, 9]])
    )
    assert iou.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("detections", "lesions", "levels", "expected"),
    [
        # One hit; exactly at the threshold; just below it.
        ([det((A, 0.9))], [[A]], [0, 1], [1, 1]),
        ([det(([0, 0, 9, 4], 0.9))], [[A]], [0, 1], [1, 1]),
        ([det(([0, 0, 9, 3.9], 0.9))], [[A]], [0, 1], [0, 0]),
        # The false positive comes first: nothing before 1 FP, then the hit.
        ([det((FAR, 0.9), (A, 0.8))], [[A]], [0.5, 1, 2], [0, 1, 1]),
        # A repeat hit is neither true nor false positive.
        ([det((A, 0.9), (A, 0.8), (B, 0.7))], [[A, B]], [0, 0.5], [1, 1]),
        # One box hits two lesions at once.
        ([det((A, 0.9))], [[A, [0, 0, 9, 8]]], [0], [1]),
        # Two images, one without lesions: its detection is a false positive, and it counts as an image.
        ([det((A, 0.5)), det((A, 0.9))], [[A], []], [0.25, 0.5, 1], [0, 1, 1]),
        # A box on the lesion of another image is a false positive.
        ([det((B, 0.9)), det((A, 0.5))], [[A], [B]], [0.5, 1], [0, 0]),
        # On the way to a repeated FP value the first sensitivity counts, at it the last.
        (
            [det((FAR, 0.9), (A, 0.8), (B, 0.7), (FAR, 0.6))],
            [[A, B, [50, 50, 59, 59], [60, 60, 69, 69]]],
            [0.99, 1, 1.5, 2, 9],
            [0, 0.5, 0.5, 0.5, 0.5],
        ),
        # Between points: hit at 0 FPs, then hit at 1 FP, linear in between only up to the point of the FP itself.
        ([det((A, 0.9), (FAR, 0.8), (B, 0.7))], [[A, B]], [0, 0.5, 1], [0.5, 0.5, 1]),
        # Equal scores keep the order of the input.
        ([det((FAR, 0.9), (A, 0.9))], [[A]], [0.5, 1], [0, 1]),
        ([det((A, 0.9), (FAR, 0.9))], [[A]], [0.5, 1], [1, 1]),
        # Nothing at all.
        ([np.zeros((0, 5))], [[A]], [1], [0]),
        ([[]], [[A]], [1], [0]),
        ([[], det((A, 0.5))], [[], [A]], [0, 1], [1, 1]),
    ],
)
def test_by_hand(detections, lesions, levels, expected):
    assert froc_sensitivities(detections, lesions, levels).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("detections", "lesions"), [([], []), ([[]], [[]]), ([det((A, 0.5))], [[]])])
def test_without_lesions_there_is_no_sensitivity(detections, lesions):
    assert np.isnan(froc_sensitivities(detections, lesions)).all()
    assert froc_sensitivities(detections, lesions).shape == (6,)


def test_nan_scores_are_left_out_and_counted():
    with pytest.warns(UserWarning, match="1 of 2 detections have NaN"):
        assert froc_sensitivities([det((A, np.nan), (B, 0.5))], [[A, B]], [1]).tolist() == [0.5]
    with pytest.warns(UserWarning, match="1 of 1"):
        assert froc_sensitivities([det((A, np.nan))], [[A]], [1]).tolist() == [0]


def test_infinite_scores_have_a_place():
    assert froc_sensitivities([det((A, -np.inf), (FAR, np.inf))], [[A]], [0.5, 1]).tolist() == [0, 1]


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="one entry per image in both. Got 1 and 2"):
        froc_sensitivities([[]], [[], []])
    with pytest.raises(ValueError, match=r"detections\[1\]: expected shape \(n, 5\), got \(1, 4\)"):
        froc_sensitivities([[], [A]], [[A], [A]])
    with pytest.raises(ValueError, match=r"ground_truths\[0\]: expected shape \(n, 4\), got \(1, 5\)"):
        froc_sensitivities([[]], [[[*A, 1]]])


def slow_froc(detections, lesions, levels, threshold):
    """The published rule, one detection after the other, and the interpolation as it is put into words."""
    order = sorted(
        ((-d[4], i, j) for i, image in enumerate(detections) for j, d in enumerate(image)), key=lambda item: item[0]
    )
    total = sum(len(g) for g in lesions)
    hit, hits, fps, points = set(), 0, 0, []
    for _, i, j in order:
        x1, y1, x2, y2 = detections[i][j][:4]
        overlapping = []
        for k, (a1, b1, a2, b2) in enumerate(lesions[i]):
            w, h = min(x2, a2) - max(x1, a1) + 1, min(y2, b2) - max(y1, b1) + 1
            intersection = max(w, 0) * max(h, 0)
            union = (x2 - x1 + 1) * (y2 - y1 + 1) + (a2 - a1 + 1) * (b2 - b1 + 1) - intersection
            if intersection / union >= threshold:
                overlapping.append((i, k))
        if not overlapping:
            fps += 1
        for lesion in overlapping:
            if lesion not in hit:
                hit.add(lesion)
                hits += 1
        points.append((fps / len(lesions), hits / total))
    values = []
    for level in levels:
        exact = [s for f, s in points if f == level]
        left = [(f, s) for f, s in points if f < level]
        right = [(f, s) for f, s in points if f > level]
        if exact:
            values.append(exact[-1])
        elif not left:
            values.append(0.0)
        elif not right:
            values.append(left[-1][1])
        else:
            (f0, s0), (f1, s1) = left[-1], right[0]
            values.append(s0 + (s1 - s0) * (level - f0) / (f1 - f0))
    return values


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 8), st.integers(1, 3), st.sampled_from([0.3, 0.5, 0.7]))
def test_equals_a_slow_implementation(seed, images, most_detections, most_lesions, threshold):
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner = rng.integers(0, 8, (count, 2))
        return np.concatenate([corner, corner + rng.integers(2, 8, (count, 2))], axis=1).astype(float)

    detections, lesions = [], []
    for _ in range(images):
        count = rng.integers(0, most_detections + 1)
        scores = rng.integers(0, 5, (count, 1)) / 4  # many ties
        detections.append(np.concatenate([boxes(count), scores], axis=1))
        lesions.append(boxes(rng.integers(0, most_lesions + 1)))
    levels = [0, 0.125, 0.5, 1, 1.7, 2, 4, 16]
    if sum(map(len, lesions)) == 0:
        lesions[0] = boxes(1)
    ours = froc_sensitivities(detections, lesions, levels, threshold)
    np.testing.assert_allclose(ours, slow_froc(detections, lesions, levels, threshold), rtol=0, atol=1e-12)


def test_input_is_not_changed():
    detections, lesions = [det((FAR, 0.1), (A, 0.9))], [np.array([A], dtype=float)]
    before = [detections[0].copy(), lesions[0].copy()]
    froc_curve(detections, lesions)
    assert np.array_equal(before[0], detections[0])
    assert np.array_equal(before[1], lesions[0])


def test_curve_keeps_its_denominators():
    curve = froc_curve([det((A, 0.9), (FAR, 0.8)), []], [[A, B], []])
    assert isinstance(curve, FrocCurve)
    assert (curve.num_images, curve.num_lesions) == (2, 2)
    assert curve.fps_per_image.tolist() == [0, 0.5]
    assert curve.sensitivity.tolist() == [0.5, 0.5]
