import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from a3d_det2.evaluation.froc import FrocCurve, froc_curve, froc_sensitivities
from a3d_det2.evaluation.matching import MatchRule, match_per_image, paired_overlap

A, B, FAR = [0, 0, 9, 9], [20, 20, 29, 29], [80, 80, 89, 89]


def det(*rows):
    return np.array([[*box, score] for box, score in rows], dtype=float)


def test_iou_counts_the_last_pixel():
    iou = paired_overlap(
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


def slow_overlaps(detection, lesion, rule):
    x1, y1, x2, y2 = detection
    a1, b1, a2, b2 = lesion
    if rule.overlap == "centre":
        return a1 <= (x1 + x2) / 2 <= a2 and b1 <= (y1 + y2) / 2 <= b2
    one = 1 if rule.plus_one else 0
    w, h = min(x2, a2) - max(x1, a1) + one, min(y2, b2) - max(y1, b1) + one
    intersection = max(w, 0) * max(h, 0)
    area = (x2 - x1 + one) * (y2 - y1 + one)
    if rule.overlap == "iou":
        area += (a2 - a1 + one) * (b2 - b1 + one) - intersection
    return area > 0 and intersection / area >= rule.threshold


def slow_froc(detections, lesions, levels, rule):
    """The published rule, one detection after the other, and the interpolation as it is put into words."""
    order = sorted(
        ((-d[4], i, j) for i, image in enumerate(detections) for j, d in enumerate(image)), key=lambda item: item[0]
    )
    total = sum(len(g) for g in lesions)
    if total == 0:
        return [float("nan")] * len(levels)
    hit, fps, points = set(), 0, []
    for _, i, j in order:
        overlapping = {(i, k) for k, box in enumerate(lesions[i]) if slow_overlaps(detections[i][j][:4], box, rule)}
        if not overlapping or (rule.repeat_hits == "false_positive" and overlapping <= hit):
            fps += 1
        hit |= overlapping
        points.append((fps / len(lesions), len(hit) / total))
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


def random_case(seed):
    """Small integer boxes that often coincide, few different scores, empty images, several lesions per box."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner = rng.integers(0, 8, (count, 2))
        return np.concatenate([corner, corner + rng.integers(0, 8, (count, 2))], axis=1).astype(float)

    most_detections, most_lesions, grey_levels = rng.integers(0, 9), rng.integers(0, 4), rng.integers(1, 8)
    detections, lesions = [], []
    for _ in range(rng.integers(0, 6)):
        count = rng.integers(0, most_detections + 1)
        lesions.append(boxes(rng.integers(0, most_lesions + 1)))
        found = boxes(count)
        if len(lesions[-1]) and rng.random() < 0.5:  # repeated and exact hits
            found[rng.random(count) < 0.5] = lesions[-1][0]
        detections.append(np.concatenate([found, rng.integers(0, grey_levels, (count, 1)) / 4], axis=1))
    return detections, lesions


LEVELS = [0, 0.125, 1 / 3, 0.5, 1, 1.7, 2, 4, 16]


def test_equals_a_slow_implementation_of_the_published_rule():
    for seed in range(4000):
        detections, lesions = random_case(seed)
        ours, slow = (
            froc_sensitivities(detections, lesions, LEVELS),
            slow_froc(detections, lesions, LEVELS, MatchRule()),
        )
        np.testing.assert_allclose(ours, slow, rtol=0, atol=1e-12, err_msg=f"seed {seed}")


@settings(max_examples=500, deadline=None)
@given(
    st.integers(0, 2**32),
    st.builds(
        MatchRule,
        overlap=st.sampled_from(["iou", "iobb", "centre"]),
        threshold=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
        plus_one=st.booleans(),
        repeat_hits=st.sampled_from(["ignored", "false_positive"]),
    ),
)
def test_equals_a_slow_implementation_of_every_rule(seed, rule):
    detections, lesions = random_case(seed)
    ours = froc_curve(match_per_image(detections, lesions, rule)).at(LEVELS)
    np.testing.assert_allclose(ours, slow_froc(detections, lesions, LEVELS, rule), rtol=0, atol=1e-12)


HALF, OFF = [0, 0, 9, 4], [4, 4, 20, 20]  # half of A; a large box whose centre (12, 12) is outside A


@pytest.mark.parametrize(
    ("rule", "detections", "levels", "expected"),
    [
        # 10 x 5 of 10 x 10 pixels are half of it; 9 x 4 of 9 x 9 are not.
        (MatchRule(), [(HALF, 0.9)], [0], [1]),
        (MatchRule(plus_one=False), [(HALF, 0.9)], [0], [0]),
        (MatchRule(plus_one=False, threshold=4 / 9), [(HALF, 0.9)], [0], [1]),
        # A pixel within the lesion: all of the detection is inside.
        (MatchRule(), [([5, 5, 5, 5], 0.9)], [0], [0]),
        (MatchRule(overlap="iobb"), [([5, 5, 5, 5], 0.9)], [0], [1]),
        # 6 x 6 of 17 x 17 pixels are inside.
        (MatchRule(overlap="iobb", threshold=36 / 289), [(OFF, 0.9)], [0], [1]),
        (MatchRule(overlap="iobb", threshold=36 / 288), [(OFF, 0.9)], [0], [0]),
        # The centre on the lesion's border hits, the one beside it does not.
        (MatchRule(overlap="centre"), [([0, 0, 18, 18], 0.9)], [0], [1]),
        (MatchRule(overlap="centre"), [([0, 0, 18.1, 18], 0.9)], [0], [0]),
        # Hit, repeat, false positive, and lesion B last.
        (MatchRule(), [(A, 0.9), (A, 0.8), (FAR, 0.7), (B, 0.6)], [0, 1, 2], [0.5, 1, 1]),
        (MatchRule(repeat_hits="false_positive"), [(A, 0.9), (A, 0.8), (FAR, 0.7), (B, 0.6)], [0, 1, 2], [0.5, 0.5, 1]),
    ],
)
def test_rules_by_hand(rule, detections, levels, expected):
    curve = froc_curve(match_per_image([det(*detections)], [[A, B]] if len(detections) > 1 else [[A]], rule))
    assert curve.at(levels).tolist() == expected


def test_rules_that_do_not_exist():
    with pytest.raises(ValueError, match="Unknown overlap 'dice'. Choose one of iou, iobb, centre"):
        MatchRule(overlap="dice")
    with pytest.raises(ValueError, match="Unknown repeat_hits 'both'. Choose one of ignored, false_positive"):
        MatchRule(repeat_hits="both")
    with pytest.raises(ValueError, match="in \\(0, 1\\]. Got 0 instead"):
        MatchRule(threshold=0)


@pytest.mark.parametrize("box", [[np.nan, 0, 9, 9], [0, 0, np.inf, 9], [-np.inf] * 2 + [np.inf] * 2, [9, 9, 0, 0]])
@pytest.mark.parametrize("overlap", ["iou", "iobb", "centre"])
def test_what_is_no_box_hits_nothing(box, overlap):
    matches = match_per_image([det((box, 0.9))], [[A]], MatchRule(overlap=overlap))
    assert matches.false_positive.tolist() == [True]
    assert matches.hit_by.tolist() == [1]


def test_a_lesion_that_is_no_box_is_an_error():
    with pytest.raises(ValueError, match=r"Lesion 1: expected a box x1 <= x2, y1 <= y2, got \[9.0, 0.0, 0.0, 9.0\]"):
        froc_sensitivities([[], []], [[A], [[9, 0, 0, 9]]])


def test_strata_of_images_and_of_lesions():
    detections = [det((A, 0.9), (FAR, 0.8)), det((FAR, 0.7), (B, 0.6)), det((FAR, 0.5))]
    matches = match_per_image(detections, [[A], [A, B], []])
    second = froc_curve(matches, images=np.array([False, True, False]))
    assert (second.num_images, second.num_lesions) == (1, 2)
    assert second.fps_per_image.tolist() == [1, 1]
    assert second.sensitivity.tolist() == [0, 0.5]
    # One lesion of the three, all images and false positives; the hit of the other lesion is neither.
    only_b = froc_curve(matches, lesions=np.array([False, False, True]))
    assert (only_b.num_images, only_b.num_lesions) == (3, 1)
    np.testing.assert_allclose(only_b.fps_per_image, [0, 1 / 3, 2 / 3, 2 / 3, 1])
    assert only_b.sensitivity.tolist() == [0, 0, 0, 1, 1]
    both = froc_curve(matches, images=np.array([True, False, True]), lesions=np.array([False, False, True]))
    assert (both.num_images, both.num_lesions) == (2, 0)
    assert np.isnan(both.at([1])).all()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(LEVELS))
def test_a_score_threshold_keeps_its_promise(seed, level):
    detections, lesions = random_case(seed)
    curve = froc_curve(match_per_image(detections, lesions))
    threshold = curve.score_threshold(level)
    scores = np.concatenate([np.zeros((0, 5)), *detections])[:, 4]

    def fps_per_image(lowest):
        kept = [image[image[:, 4] >= lowest] for image in detections]
        return match_per_image(kept, lesions).false_positive.sum() / max(len(lesions), 1)

    if np.isnan(threshold):
        assert len(scores) == 0 or fps_per_image(scores.max()) > level
    else:
        assert fps_per_image(threshold) <= level
        lower = scores[scores < threshold]
        assert len(lower) == 0 or fps_per_image(lower.max()) > level


def test_input_is_not_changed():
    detections, lesions = [det((FAR, 0.1), (A, 0.9))], [np.array([A], dtype=float)]
    before = [detections[0].copy(), lesions[0].copy()]
    froc_sensitivities(detections, lesions)
    assert np.array_equal(before[0], detections[0])
    assert np.array_equal(before[1], lesions[0])


def test_curve_keeps_its_denominators():
    curve = froc_curve(match_per_image([det((A, 0.9), (FAR, 0.8)), []], [[A, B], []]))
    assert isinstance(curve, FrocCurve)
    assert (curve.num_images, curve.num_lesions) == (2, 2)
    assert curve.fps_per_image.tolist() == [0, 0.5]
    assert curve.sensitivity.tolist() == [0.5, 0.5]


def test_assignments():
    """A box on two lesions, and a better one on the second with the lower score."""
    lesions = [np.array([[0, 0, 9, 9], [10, 0, 19, 9]])]
    found = [np.array([[2, 0, 19, 9, 0.9], [10, 0, 19, 9, 0.5]])]

    def hits(assignment, repeat_hits="false_positive"):
        rule = MatchRule(threshold=0.3, assignment=assignment, repeat_hits=repeat_hits)
        matches = match_per_image(found, lesions, rule)
        return matches.hit_by.tolist(), matches.false_positive.tolist()

    assert hits("several") == ([0, 0], [False, True])
    assert hits("greedy") == ([2, 0], [False, True])  # the first takes the lesion it overlaps most
    assert hits("optimal") == ([0, 1], [False, False])
    assert hits("greedy", "ignored") == ([2, 0], [False, False])
    with pytest.raises(ValueError, match="Unknown assignment 'any'"):
        MatchRule(assignment="any")


def test_greedy_is_cocos_matching():
    """The same detections are true, and the same lesions found, as by pycocotools, with equal scores and overlaps."""
    rng = np.random.default_rng(0)
    rule = MatchRule(threshold=0.3, plus_one=False, repeat_hits="false_positive", assignment="greedy")
    hits = 0
    for _ in range(300):
        n, m = rng.integers(1, 7), rng.integers(1, 5)
        low = rng.integers(0, 6, (n + m, 2))
        boxes = np.concatenate([low, low + rng.integers(1, 5, (n + m, 2))], axis=1).astype(float)
        scores = rng.integers(1, 4, n) / 4
        coco = COCO()
        coco.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}]}
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        common = {"image_id": 1, "category_id": 1, "iscrowd": 0}
        coco.dataset["annotations"] = [
            {"id": 1 + j, "bbox": xywh[n + j].tolist(), "area": float(xywh[n + j, 2:].prod()), **common}
            for j in range(m)
        ]
        coco.createIndex()
        found = coco.loadRes([{**common, "bbox": xywh[i].tolist(), "score": float(scores[i])} for i in range(n)])
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.params.iouThrs, evaluation.params.maxDets = np.array([0.3]), [100]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.evaluate()
        theirs = evaluation.evalImgs[0]
        matches = match_per_image([np.column_stack([boxes[:n], scores])], [boxes[n:]], rule)
        assert (theirs["dtMatches"][0] > 0).tolist() == (~matches.false_positive).tolist()
        given = [theirs["dtIds"][k] if k < n else 0 for k in matches.hit_by]
        by_id = dict(zip(theirs["gtIds"], theirs["gtMatches"][0], strict=True))
        assert given == [by_id[1 + j] for j in range(m)]
        hits += int((~matches.false_positive).sum())
    assert hits > 100
