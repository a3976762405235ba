"""When a lesion that was found is one that there is: the rules of others, each by its published definition."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..matching import MatchRule, is_box
from .results import FoundVolume
from .truth import TrueVolume

UNKNOWN_DIAMETER = 10.0  # mm
Overlap = Callable[[FoundVolume, TrueVolume, MatchRule], np.ndarray]


@dataclass(frozen=True)
class VolumeRule:
    """A rule of a hit.

    Attributes:
        name: that the command line knows it by.
        title: what it asks, in words.
        source: where it is defined.
        rule: threshold, assignment and repeat hits.
        overlap: (n, m) of all pairs in a volume, in the measure that the threshold is of.
        needs: of the truth: attributes of :class:`.TrueVolume`, of which none may be unknown.
        needs_labels: whether results must have label maps.
    """

    name: str
    title: str
    source: str
    rule: MatchRule
    overlap: Overlap
    needs: tuple[str, ...] = ()
    needs_labels: bool = False

    def problem(self, found: FoundVolume, volume: TrueVolume) -> str:
        """Why it cannot judge a volume; "" if it can."""
        for name in self.needs:
            value = getattr(volume, name)
            if isinstance(value, np.ndarray) and name != "to_mm":
                value = value[~volume.excluded]
            lacks = value is None or (
                isinstance(value, np.ndarray) and value.dtype.kind == "f" and np.isnan(value).any()
            )
            if lacks and len(volume.boxes):
                return f"{self.name} needs {WORDS[name]} of each lesion, which {volume.id} lacks"
        if self.needs_labels and len(found.boxes) and len(volume.boxes) and found.labels is None:
            return f"{self.name} needs label maps of results, which {volume.id} lacks"
        return ""


WORDS = {
    "key_boxes": "the box on one slice",
    "long_mm": "the diameter in mm",
    "to_mm": "the distances of voxels in mm",
    "labels": "the label map",
}


def box_overlap(found: FoundVolume, volume: TrueVolume, rule: MatchRule) -> np.ndarray:
    """IoU or IoBB of boxes in three dimensions."""
    return rule.overlaps(found.boxes[:, None], volume.boxes[None])


def key_slice_overlap(found: FoundVolume, volume: TrueVolume, rule: MatchRule) -> np.ndarray:
    """IoU in the plane of the slice on which the lesion is annotated; 0 where the box that was found has not that
    slice."""
    axis = volume.slice_axis
    plane = [i for i in range(3) if i != axis]
    plane += [3 + i for i in plane]
    slices = volume.key_boxes[None, :, axis]
    is_on_slice = (found.boxes[:, None, axis] <= slices) & (slices <= found.boxes[:, None, 3 + axis])
    return is_on_slice * rule.overlaps(found.boxes[:, None, plane], volume.key_boxes[None, :, plane])


def within_radius(found: FoundVolume, volume: TrueVolume, rule: MatchRule) -> np.ndarray:
    """1 where the centres are less than half a diameter apart. A diameter below 0, as LUNA16's excluded findings have,
    is taken as 10 mm, as its program does."""
    diameters = np.where(volume.long_mm < 0, UNKNOWN_DIAMETER, volume.long_mm)
    with np.errstate(invalid="ignore"):
        steps = (found.centers[:, None] - volume.centers[None]) @ volume.to_mm.T
        near = (steps**2).sum(axis=-1) < (diameters / 2) ** 2
    return (near & is_box(found.boxes)[:, None]).astype(np.float64)


def point_in_label(found: FoundVolume, volume: TrueVolume, rule: MatchRule) -> np.ndarray:
    """1 where the voxel at the centre of what was found is of the lesion."""
    labels = volume.labels()
    with np.errstate(invalid="ignore"):
        voxels = np.rint(found.centers)
        inside = (
            is_box(found.boxes)
            & np.isfinite(voxels).all(axis=1)
            & (voxels >= 0).all(axis=1)
            & (voxels < labels.shape).all(axis=1)
        )
    hit = np.zeros(len(voxels), dtype=np.int64)
    hit[inside] = labels[tuple(voxels[inside].astype(np.int64).T)]
    return (hit[:, None] == volume.numbers[None]).astype(np.float64)


def label_overlap(found: FoundVolume, volume: TrueVolume, rule: MatchRule) -> np.ndarray:
    """IoU of label maps, voxel by voxel."""
    if not len(found.boxes) or not len(volume.boxes):
        return np.zeros((len(found.boxes), len(volume.boxes)))
    ours, theirs = found.labels(), volume.labels()
    rows, columns = (
        _number_of(values, numbers) for values, numbers in ((ours, found.numbers), (theirs, volume.numbers))
    )
    n, m = len(found.numbers), len(volume.numbers)
    counts = np.bincount(((rows + 1) * (m + 1) + columns + 1).ravel(), minlength=(n + 1) * (m + 1)).reshape(
        n + 1, m + 1
    )
    common = counts[1:, 1:]
    union = counts[1:].sum(axis=1)[:, None] + counts[:, 1:].sum(axis=0)[None] - common
    return common / np.maximum(union, 1)


def _number_of(labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which of the lesions each voxel is of, by its place in ``numbers``; -1 for none."""
    table = np.full(max(int(labels.max(initial=0)), int(numbers.max(initial=0))) + 1, -1, dtype=np.int64)
    table[numbers] = np.arange(len(numbers))
    return table[labels]


_COCO = {"repeat_hits": "false_positive", "assignment": "greedy"}
_RULES = (
    *(
        VolumeRule(
            f"iou3d_{least:g}",
            f"3D IoU of boxes >= {least:g}; by falling score, one lesion each; repeats are false positives",
            "nnDetection (Baumgartner et al., MICCAI 2021), matching as in COCO's evaluation",
            MatchRule("iou", least, **_COCO),
            box_overlap,
        )
        for least in (0.1, 0.3, 0.5)
    ),
    VolumeRule(
        "iobb3d_0.3",
        "intersection over the box that was found >= 0.3, in 3D; a box may hit several lesions; repeats count nowhere",
        "DeepLesion's manual test set (Yan et al., IEEE TMI 2020), github.com/viggin/DeepLesion_manual_test_set",
        MatchRule("iobb", 0.3),
        box_overlap,
    ),
    VolumeRule(
        "p3d_0.5",
        "2D IoU >= 0.5 on the slice on which the lesion is annotated; otherwise as iobb3d_0.3",
        "Lesion Harvester (Cai et al., IEEE TMI 2021); P3D of the manual test set's program",
        MatchRule("iou", 0.5),
        key_slice_overlap,
        needs=("key_boxes",),
    ),
    VolumeRule(
        "luna16",
        "distance of the centres < half the diameter; repeats and excluded findings count nowhere",
        "LUNA16 (Setio et al., Medical Image Analysis 2017), noduleCADEvaluationLUNA16.py",
        MatchRule("centre"),
        within_radius,
        needs=("long_mm", "to_mm"),
    ),
    VolumeRule(
        "point_in_mask",
        "the voxel at the centre is of the lesion; repeats count nowhere",
        "MONAI, monai.metrics.froc (compute_fp_tp_probs_nd), after CAMELYON16",
        MatchRule("centre"),
        point_in_label,
        needs=("labels",),
    ),
    VolumeRule(
        "picai",
        "IoU of label maps >= 0.1; one lesion each by the Hungarian method; others that overlap enough count nowhere",
        "PI-CAI (Saha et al., Lancet Oncology 2024), picai_eval",
        MatchRule("iou", 0.1, assignment="optimal"),
        label_overlap,
        needs=("labels",),
        needs_labels=True,
    ),
)
RULES = {rule.name: rule for rule in _RULES}
NEVER_ALONE = "iobb3d_0.3"  # a perfect box on one slice passes it always, and 3D IoU 0.3 in 14 % of lesions
