"""Each rule against a slow loop over sets of voxels, written from its definition, on a thousand small cases; and where
they are installed, against the programs that define them."""

import itertools

import numpy as np
import pytest

from a3d_det2.evaluation.volumes import RULES, FoundVolume, TrueVolume, VolumeEvaluation
from tests.evaluation.volumes.cases import SPACING, random_case

CASES = pytest.mark.parametrize("seeds", [range(150), pytest.param(range(150, 1000), marks=pytest.mark.slow)])


def voxels(box) -> set[tuple[int, int, int]]:
    x1, y1, z1, x2, y2, z2 = map(int, box)
    return set(itertools.product(range(x1, x2 + 1), range(y1, y2 + 1), range(z1, z2 + 1)))


def iou(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def slow_overlap(name: str, one, volume, i: int, j: int) -> float:
    """How much result i overlaps lesion j; a hit is at least the second value."""
    box, lesion = one.boxes[i], volume.boxes[j]
    if name.startswith("iou3d"):
        return iou(voxels(box), voxels(lesion))
    if name == "iobb3d_0.3":
        return len(voxels(box) & voxels(lesion)) / len(voxels(box))
    if name == "p3d_0.5":
        key = volume.key_boxes[j]
        on_slice = {v for v in voxels(box) if v[2] == key[2]}
        return iou({v[:2] for v in on_slice}, {v[:2] for v in voxels(key)}) if on_slice else 0.0
    if name == "luna16":
        steps = [((box[k] + box[k + 3]) - (lesion[k] + lesion[k + 3])) / 2 * SPACING[k] for k in range(3)]
        return float(sum(step**2 for step in steps) < (volume.long_mm[j] / 2) ** 2)
    if name == "point_in_mask":
        point = tuple(round((box[k] + box[k + 3]) / 2) for k in range(3))
        return float(volume.labels()[point] == volume.numbers[j])
    mine, theirs = (
        set(map(tuple, np.argwhere(v.labels() == v.numbers[k]).tolist())) for v, k in ((one, i), (volume, j))
    )
    return iou(mine, theirs)


def slow_match(name: str, least: float, volumes, found):
    """For each lesion that counts the place of the result that hits it or None, and the results that are mistakes."""
    order = sorted(
        ((v, i) for v, one in enumerate(found) for i in range(len(one.scores))),
        key=lambda vi: -found[vi[0]].scores[vi[1]],
    )
    hit: dict[tuple[int, int], tuple[int, int] | None] = {
        (v, j): None for v, volume in enumerate(volumes) for j in range(len(volume.boxes)) if not volume.excluded[j]
    }
    mistakes = set()
    for v, i in order:
        volume = volumes[v]
        overlaps = {j: slow_overlap(name, found[v], volume, i, j) for j in range(len(volume.boxes))}
        enough = {j: o for j, o in overlaps.items() if o >= least - 1e-12}
        if name.startswith("iou3d"):
            free = [j for j in enough if not volume.excluded[j] and hit[v, j] is None]
            if free:
                best = max(free, key=lambda j: (enough[j], j))
                hit[v, best] = (v, i)
            elif not any(volume.excluded[j] for j in enough):
                mistakes.add((v, i))
        else:
            for j in enough:
                if not volume.excluded[j] and hit[v, j] is None:
                    hit[v, j] = (v, i)
            if not enough:
                mistakes.add((v, i))
    return hit, mistakes


@CASES
@pytest.mark.parametrize("name", [name for name in RULES if name != "picai"])
def test_equal_to_a_slow_loop(name, seeds):
    least = 1.0 if name in ("luna16", "point_in_mask") else float(name.rpartition("_")[2])
    hits = 0
    for seed in seeds:
        volumes, found = random_case(seed)
        matches = VolumeEvaluation(volumes, found, RULES[name], resamples=0).matches
        expected, mistakes = slow_match(name, least, volumes, found)
        places = [(v, i) for v, one in enumerate(found) for i in range(len(one.scores))]
        given = [places[k] for k in matches.detection]
        assert {given[k] for k in np.flatnonzero(matches.false_positive)} == mistakes
        assert [given[k] if k < len(given) else None for k in matches.hit_by] == list(expected.values())
        hits += sum(one is not None for one in expected.values())
    assert hits > 0.4 * len(seeds)  # the cases are not empty


def best_sum(gain: np.ndarray) -> float:
    """The greatest sum of entries, each of a row and a column of its own, by trying all ways."""
    rows, columns = sorted(gain.shape)
    gain = gain if gain.shape[0] <= gain.shape[1] else gain.T
    return max(sum(gain[r, c] for r, c in enumerate(way)) for way in itertools.permutations(range(columns), rows))


@CASES
def test_the_hungarian_rule_against_all_ways(seeds):
    for seed in seeds:
        volumes, found = random_case(seed, excluded=False)
        evaluation = VolumeEvaluation(volumes, found, RULES["picai"], resamples=0)
        matches = evaluation.matches
        places = [(v, i) for v, one in enumerate(found) for i in range(len(one.scores))]
        given = [places[k] for k in matches.detection]
        sums, best, mistakes, lesion = 0.0, 0.0, set(), 0
        for v, (one, volume) in enumerate(zip(found, volumes, strict=True)):
            n, m = len(one.scores), len(volume.boxes)
            overlaps = np.array(
                [[slow_overlap("picai", one, volume, i, j) for j in range(m)] for i in range(n)]
            ).reshape(n, m)
            gain = np.where(overlaps >= 0.1, overlaps + 1, 0)
            mistakes |= {(v, i) for i in range(n) if not gain[i].any()}
            best += best_sum(gain) if n and m else 0.0
            taken = []
            for j in range(m):
                if matches.hit_by[lesion] < len(given):
                    where, i = given[matches.hit_by[lesion]]
                    assert where == v
                    sums += gain[i, j]
                    taken.append(i)
                lesion += 1
            assert len(set(taken)) == len(taken)
        assert sums == pytest.approx(best, abs=1e-9)
        assert {given[k] for k in np.flatnonzero(matches.false_positive)} == mistakes


@CASES
def test_the_hungarian_rule_against_picai_eval(seeds):
    evaluate_case = pytest.importorskip("picai_eval.eval").evaluate_case
    for seed in seeds:
        volumes, found = random_case(seed, ties=False, excluded=False)
        volumes, found = zip(*(apart(v, f) for v, f in zip(volumes, found, strict=True)), strict=True)
        matches = VolumeEvaluation(volumes, found, RULES["picai"], resamples=0).matches
        for index, (one, volume) in enumerate(zip(found, volumes, strict=True)):
            scores = np.concatenate([[0.0], one.scores])[
                np.searchsorted(np.concatenate([[0], one.numbers]), one.labels())
            ]
            table, *_ = evaluate_case(scores.astype(np.float32), (volume.labels() > 0).astype(np.int32))
            theirs_true = sorted(round(float(c), 4) for is_lesion, c, _ in table if is_lesion)
            theirs_false = sorted(round(float(c), 4) for is_lesion, c, _ in table if not is_lesion)
            ours = matches.hit_by[matches.lesion_image == index]
            true = sorted(round(float(matches.score[k]), 4) if k < len(matches.score) else 0.0 for k in ours)
            false = matches.score[matches.false_positive & (matches.image == index)]
            assert true == theirs_true
            assert sorted(round(float(s), 4) for s in false) == theirs_false


def apart(volume: TrueVolume, found: FoundVolume) -> tuple[TrueVolume, FoundVolume]:
    """With its labels as picai_eval finds them, the connected parts of the mask; results that touch are one there, and
    are left out here."""
    from scipy import ndimage

    truth, _ = ndimage.label(volume.labels() > 0, structure=np.ones((3, 3, 3)))
    ours, kept = found.labels().copy(), []
    for number in found.numbers:
        around = ndimage.binary_dilation(ours == number, structure=np.ones((3, 3, 3)))
        parts = ndimage.label(ours == number, structure=np.ones((3, 3, 3)))[1]
        if parts == 1 and set(np.unique(ours[around])) <= {0, number}:
            kept.append(number)
        else:
            ours[ours == number] = 0
    keep = np.isin(found.numbers, kept)
    numbers = np.setdiff1d(np.unique(truth), [0])
    boxes = np.array([[*np.argwhere(truth == k).min(axis=0), *np.argwhere(truth == k).max(axis=0)] for k in numbers])
    return (
        TrueVolume(volume.id, boxes, labels=lambda: truth, numbers=numbers),
        FoundVolume(found.id, found.boxes[keep], found.scores[keep], labels=lambda: ours, numbers=found.numbers[keep]),
    )


@CASES
def test_points_against_monai(seeds):
    froc = pytest.importorskip("monai.metrics.froc")
    for seed in seeds:
        volumes, found = random_case(seed)
        matches = VolumeEvaluation(volumes, found, RULES["point_in_mask"], resamples=0).matches
        false, true = [], []
        for one, volume in zip(found, volumes, strict=True):
            if not len(volume.boxes):
                false += one.scores.tolist()
                continue
            points = np.rint(one.centers).astype(int)
            out = volume.numbers[volume.excluded].tolist()
            fp, tp, _ = froc.compute_fp_tp_probs_nd(one.scores, points.reshape(-1, 3), volume.labels(), out)
            false += fp.tolist()
            counted = volume.numbers[~volume.excluded]
            true += tp[counted - 1].tolist()
        ours = np.where(matches.hit_by < len(matches.score), 1, 0)
        scores = np.append(matches.score, 0.0)[matches.hit_by] * ours
        assert scores.tolist() == pytest.approx(true)
        assert sorted(matches.score[matches.false_positive]) == pytest.approx(sorted(false))


def test_monai_leaves_out_the_lowest_score():
    """Its curve skips the lowest of the scores: of two lesions, both found and nothing else, it says 0.5."""
    froc = pytest.importorskip("monai.metrics.froc")
    _, theirs = froc.compute_froc_curve_data(np.zeros(0), np.array([0.9, 0.5]), 2, 1)
    assert theirs.max() == 0.5
    labels = np.zeros((4, 4, 4), dtype=int)
    labels[0, 0, 0], labels[3, 3, 3] = 1, 2
    boxes = np.array([[0, 0, 0, 0, 0, 0], [3, 3, 3, 3, 3, 3]], dtype=float)
    volume = TrueVolume("a", boxes, labels=lambda: labels, numbers=np.array([1, 2]))
    found = FoundVolume("a", boxes, [0.9, 0.5])
    ours = VolumeEvaluation([volume], [found], RULES["point_in_mask"], resamples=0)
    assert ours.sensitivities()[-1] == 1.0


def test_picai_assigns_once_for_all_thresholds():
    """Two results overlap one lesion: the better one of the two may have the lower score, and takes the lesion at
    every threshold. By falling score it is found from the higher one on."""
    labels = np.zeros((10, 1, 1), dtype=int)
    labels[:10] = 1
    ours = np.zeros((10, 1, 1), dtype=int)
    ours[:3], ours[4:10] = 1, 2
    volume = TrueVolume("a", np.array([[0, 0, 0, 9, 0, 0]]), labels=lambda: labels, numbers=np.array([1]))
    boxes = np.array([[0, 0, 0, 2, 0, 0], [4, 0, 0, 9, 0, 0]])
    found = FoundVolume("a", boxes, [0.9, 0.2], labels=lambda: ours, numbers=np.array([1, 2]))
    hungarian = VolumeEvaluation([volume], [found], RULES["picai"], resamples=0).matches
    assert hungarian.score[hungarian.hit_by].tolist() == [0.2]
    greedy = VolumeEvaluation([volume], [found], RULES["iou3d_0.1"], resamples=0).matches
    assert greedy.score[greedy.hit_by].tolist() == [0.9]
    assert (hungarian.false_positive.sum(), greedy.false_positive.sum()) == (0, 1)


def test_luna16_is_strict_and_ignores_what_is_excluded():
    """A mark exactly at the radius is none; marks on an excluded finding count nowhere."""
    boxes = np.array([[2, 2, 2, 2, 2, 2], [8, 8, 8, 8, 8, 8]], dtype=float)
    volume = TrueVolume("a", boxes, long_mm=[4.0, 4.0], to_mm=np.eye(3), excluded=[False, True])

    def found(*places):
        boxes = np.array([[*place, *place] for place in places], dtype=float)
        found = FoundVolume("a", boxes, np.linspace(0.9, 0.5, len(places)))
        matches = VolumeEvaluation([volume], [found], RULES["luna16"], resamples=0).matches
        return matches.num_lesions, int((matches.hit_by < len(places)).sum()), int(matches.false_positive.sum())

    assert found((4, 2, 2)) == (1, 0, 1)
    assert found((3.99, 2, 2)) == (1, 1, 0)
    assert found((8, 8, 8)) == (1, 0, 0)
    assert found((2, 2, 2), (3, 2, 2), (8, 9, 8)) == (1, 1, 0)


def test_luna16_takes_unknown_diameters_as_10_mm():
    """Its excluded findings have a diameter of -1; a mark 3 mm from one counts nowhere."""
    boxes = np.array([[5, 5, 5, 5, 5, 5], [50, 50, 50, 50, 50, 50]], dtype=float)
    volume = TrueVolume("a", boxes, long_mm=[8.0, -1.0], to_mm=np.eye(3), excluded=[False, True])
    found = FoundVolume("a", np.array([[53, 50, 50, 53, 50, 50], [56, 50, 50, 56, 50, 50]]), [0.9, 0.8])
    evaluation = VolumeEvaluation([volume], [found], RULES["luna16"], resamples=0)
    assert evaluation.matches.false_positive.tolist() == [False, True]
    unknown = TrueVolume("a", boxes, long_mm=[8.0, np.nan], to_mm=np.eye(3), excluded=[False, True])
    assert VolumeEvaluation([unknown], [found], RULES["luna16"], resamples=0).matches.false_positive.all()


@pytest.mark.parametrize("name", [name for name in RULES if name != "picai"])
def test_a_box_that_is_none_hits_nothing(name):
    labels = np.ones((10, 10, 10), dtype=int)
    key = np.array([[0, 0, 5, 9, 9, 5]])
    more = {"key_boxes": key, "long_mm": [20.0], "to_mm": np.eye(3), "labels": lambda: labels, "numbers": np.array([1])}
    volume = TrueVolume("a", np.array([[0, 0, 0, 9, 9, 9]]), **more)
    boxes = np.array([[9, 9, 9, 0, 0, 0], [np.nan, 0, 0, 9, 9, 9], [0, 0, 0, np.inf, 9, 9]])
    found = FoundVolume("a", boxes, [0.9, 0.8, 0.7])
    assert VolumeEvaluation([volume], [found], RULES[name], resamples=0).matches.false_positive.all()


def test_one_slice_passes_iobb_and_not_iou():
    """A perfect box on one of ten slices."""
    volume = TrueVolume("a", np.array([[0, 0, 0, 9, 9, 9]]))
    found = FoundVolume("a", np.array([[0, 0, 5, 9, 9, 5]]), [0.9])
    average = {
        name: VolumeEvaluation([volume], [found], RULES[name], resamples=0).sensitivities()[-1]
        for name in ("iobb3d_0.3", "iou3d_0.1", "iou3d_0.3")
    }
    assert average == {"iobb3d_0.3": 1.0, "iou3d_0.1": 1.0, "iou3d_0.3": 0.0}


@pytest.mark.parametrize("name", ["p3d_0.5", "luna16", "point_in_mask", "picai"])
def test_what_a_rule_needs_is_said(name):
    volume = TrueVolume("ct 7", np.array([[0, 0, 0, 9, 9, 9]]))
    found = FoundVolume("ct 7", np.array([[0, 0, 5, 9, 9, 5]]), [0.9])
    with pytest.raises(ValueError, match=f"{name} needs .*, which ct 7 lacks"):
        VolumeEvaluation([volume], [found], RULES[name])
