import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3d_det2.volumes import Detection, LinkingRule, link_detections
from a3d_det2.volumes.linking import box_ious

BOX = np.array([10.0, 10.0, 19.0, 19.0])
FAR = BOX + 50


def link(found, interval=2.0, **rule):
    """Link (index, box, score) or detections."""
    detections = [one if isinstance(one, Detection) else Detection(*one) for one in found]
    depth = max(d.index for d in detections) + 1
    linked = link_detections(detections, np.arange(depth) * interval, LinkingRule(**rule), interval)
    return [([d.index for d in one.detections], one.score) for one in linked]


def test_overlaps_are_those_of_pixels():
    first = np.array([[0, 0, 9, 9]])
    second = np.array([[0, 0, 9, 9], [5, 0, 14, 9], [10, 0, 19, 9], [3, 3, 3, 3]])
    np.testing.assert_allclose(box_ious(first, second), [[1, 1 / 3, 0, 0.01]])


def test_detections_one_after_the_other_are_one_lesion():
    assert link([(2, BOX, 0.3), (3, BOX, 0.9), (4, BOX, 0.5)]) == [([2, 3, 4], 0.9)]


def test_a_shift_of_half_the_box_is_another_lesion():
    shifted = BOX + [5, 0, 5, 0]  # an IoU of 1/3
    found = [(0, BOX, 0.9), (1, BOX, 0.9), (2, shifted, 0.8), (3, shifted, 0.8)]
    assert link(found) == [([0, 1], 0.9), ([2, 3], 0.8)]
    assert link(found, iou=0.3) == [([0, 1, 2, 3], 0.9)]


@pytest.mark.parametrize(
    ("interval", "gap", "missing", "linked"),
    [
        (2.0, None, 1, True),
        (2.0, None, 2, False),
        (5.0, None, 1, True),  # one slice, though 5 mm
        (5.0, None, 2, False),
        (0.5, None, 4, True),  # 2 mm
        (0.5, None, 5, False),
        (2.0, 6.0, 3, True),
        (2.0, 1.9, 1, False),
        (2.0, 0.0, 0, True),
    ],
)
def test_gaps_are_mm(interval, gap, missing, linked):
    first, second = range(10), range(10 + missing, 20 + missing)
    found = [(k, BOX, 0.5) for k in (*first, *second)]
    expected = [[*first, *second]] if linked else [[*first], [*second]]
    assert [indices for indices, _ in link(found, interval, gap=gap)] == expected


def test_slices_that_follow_each_other_link_where_intervals_differ():
    positions = np.concatenate([np.arange(20) * 1.25, 23.75 + np.arange(1, 6) * 5, [200, 205]])
    found = [Detection(k, BOX, 0.5) for k in range(18, 27)]
    linked = link_detections(found, positions, LinkingRule(gap=0), 1.25)
    assert [[d.index for d in one.detections] for one in linked] == [list(range(18, 25)), [25, 26]]


def test_short_ones_are_left_out():
    assert link([(3, BOX, 0.9)]) == []
    assert link([(3, BOX, 0.9)], min_slices=1, min_extent=0) == [([3], 0.9)]
    assert link([(3, BOX, 0.9)], min_slices=1) == []  # 2 mm
    assert link([(3, BOX, 0.9), (4, BOX, 0.9)]) == [([3, 4], 0.9)]  # 4 mm
    thin = [(k, BOX, 0.9) for k in range(5)]
    assert link(thin, interval=0.7) == []  # 3.5 mm
    assert link(thin, interval=0.8) == [([0, 1, 2, 3, 4], 0.9)]


@pytest.mark.parametrize(("how", "score"), [("max", 0.8), ("mean", 0.65), ("noisy-or", 0.9)])
def test_scores(how, score):
    ((_, got),) = link([(0, BOX, 0.8), (1, BOX, 0.5)], score=how)
    assert got == pytest.approx(score)


def test_the_larger_overlap_wins_and_the_nearer_slice():
    better = BOX + [1, 0, 1, 0]
    found = [(0, BOX, 0.9), (0, BOX + [4, 0, 4, 0], 0.95), (1, better, 0.7)]
    assert link(found, min_slices=1, min_extent=0, nms_iou=1)[1] == ([0, 1], 0.9)
    # What ended one slice before goes on, rather than what ended two slices before.
    found = [(0, BOX, 0.9), (1, BOX + [3, 0, 3, 0], 0.8), (2, BOX, 0.7)]
    assert link(found, iou=0.6, min_slices=1, min_extent=0, nms_iou=1) == [([0, 2], 0.9), ([1], 0.8)]
    found[1] = (1, BOX + [2, 0, 2, 0], 0.8)
    assert link(found, iou=0.6) == [([0, 1, 2], 0.9)]


def test_one_detection_goes_on_with_one_lesion():
    both = [(0, BOX, 0.9), (0, BOX, 0.8), (1, BOX, 0.7), (1, BOX, 0.6)]
    assert link(both, nms_iou=1) == [([0, 1], 0.9), ([0, 1], 0.8)]
    assert link(both) == [([0, 1], 0.9)]  # of two in one place the one with the higher score


def test_classes_are_not_mixed():
    found = [Detection(0, BOX, 0.9, None, 0), Detection(1, BOX, 0.9, None, 1)]
    assert link(found) == []
    found += [Detection(1, BOX, 0.5, None, 0), Detection(2, BOX, 0.5, None, 1)]
    assert link(found) == [([0, 1], 0.9), ([1, 2], 0.9)]


def test_nothing_found():
    assert link_detections([], np.arange(5.0), LinkingRule(), 1.0) == []


boxes = st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(3, 12)] * 2).map(
    lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]], dtype=float)
)
detections = st.lists(
    st.builds(Detection, st.integers(0, 12), boxes, st.sampled_from([0.2, 0.5, 0.5, 0.9])), max_size=40
)


@settings(max_examples=200, deadline=None)
@given(detections, st.randoms())
def test_the_order_does_not_matter(found, random):
    how = np.arange(13) * 1.5, LinkingRule(min_slices=1, min_extent=0), 1.5
    shuffled = list(found)
    random.shuffle(shuffled)

    def described(linked):
        return [(one.score, [(d.index, d.score, *d.box) for d in one.detections]) for one in linked]

    first, second = (described(link_detections(one, *how)) for one in (found, shuffled))
    assert first == second
    for _, chain in first:
        indices = [d[0] for d in chain]
        assert indices == sorted(set(indices))
    assert sum(len(chain) for _, chain in first) <= len(found)
    everything = link_detections(found, how[0], LinkingRule(min_slices=1, min_extent=0, nms_iou=1), 1.5)
    assert sum(len(one.detections) for one in everything) == len(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou": 0}, "iou above 0 and up to 1, got 0"),
        ({"gap": -1}, "gap in mm from 0 on, got -1"),
        ({"gap": float("nan")}, "gap in mm"),
        ({"min_slices": 0}, "min_slices from 1 on, got 0"),
        ({"min_extent": float("inf")}, "min_extent in mm from 0 on, got inf"),
        ({"score": "sum"}, "Unknown score 'sum'. Choose one of max, mean, noisy-or"),
        ({"nms_iou": 1.5}, "nms_iou from 0 to 1, got 1.5"),
    ],
)
def test_rules_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        LinkingRule(**options)
