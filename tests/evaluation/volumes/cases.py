"""Small volumes with lesions and results at random places of a grid, so that ties, repeats and several lesions in a box
are frequent."""

import numpy as np

from a3d_det2.evaluation.volumes import FoundVolume, TrueVolume

SIDE = 9
SPACING = (0.75, 0.5, 2.5)  # mm; sums of such numbers are exact


def random_boxes(rng, count: int, longest: int = 4) -> np.ndarray:
    low = rng.integers(0, SIDE - longest, (count, 3))
    return np.concatenate([low, low + rng.integers(0, longest, (count, 3))], axis=1).astype(float)


def draw(boxes: np.ndarray) -> np.ndarray:
    """A label map, the first box on top."""
    labels = np.zeros((SIDE, SIDE, SIDE), dtype=np.int64)
    for number in range(len(boxes), 0, -1):
        x1, y1, z1, x2, y2, z2 = boxes[number - 1].astype(int)
        labels[x1 : x2 + 1, y1 : y2 + 1, z1 : z2 + 1] = number
    return labels


def random_case(seed: int, ties: bool = True, excluded: bool = True) -> tuple[list[TrueVolume], list[FoundVolume]]:
    """From one to five volumes; some have no lesion, some no result."""
    rng = np.random.default_rng(seed)
    volumes, found = [], []
    scores = (1 + rng.permutation(200)) / 200  # each once
    for index in range(rng.integers(1, 6)):
        m, n = (int(k) if rng.random() < 0.8 else 0 for k in (rng.integers(1, 5), rng.integers(1, 7)))
        true_boxes, other = random_boxes(rng, m), random_boxes(rng, n)
        for i in np.flatnonzero(rng.random(n) < 0.7) if m else ():  # a lesion, moved a little
            moved = true_boxes[rng.integers(m)] + np.tile(rng.integers(-1, 2, 3), 2)
            if (moved >= 0).all() and (moved < SIDE).all():
                other[i] = moved
        truth, ours = draw(true_boxes), draw(other)
        (m, boxes), (n, result_boxes) = (boxes_of(labels) for labels in (truth, ours))
        key = boxes.copy()
        key[:, 2] = key[:, 5] = np.floor((boxes[:, 2] + boxes[:, 5]) / 2)
        volumes.append(
            TrueVolume(
                id=f"volume {index}",
                boxes=boxes,
                patient=f"patient {index // 2}",
                excluded=rng.random(len(m)) < (0.2 if excluded else 0.0),
                key_boxes=key,
                long_mm=rng.integers(1, 8, len(m)).astype(float),
                to_mm=np.diag(SPACING),
                shape=truth.shape,
                labels=lambda truth=truth: truth,
                numbers=m,
            )
        )
        score = rng.integers(1, 4, len(n)) / 4 if ties else scores[10 * index : 10 * index + len(n)]
        found.append(FoundVolume(f"volume {index}", result_boxes, score, labels=lambda ours=ours: ours, numbers=n))
    return volumes, found


def boxes_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers in a label map, and the box of each."""
    numbers = np.setdiff1d(np.unique(labels), [0])
    places = [np.argwhere(labels == number) for number in numbers]
    boxes = [np.concatenate([place.min(axis=0), place.max(axis=0)]) for place in places]
    return numbers, np.array(boxes, dtype=float).reshape(-1, 6)
