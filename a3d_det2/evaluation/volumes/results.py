"""The lesions that were found in a volume, by this package or any other."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...csv_table import read_table
from ...files import shortened
from ..matching import is_box
from .columns import BOX, numbers
from .truth import TrueVolume

RESULTS, LABELS = "lesions.json", "lesions.nii.gz"
FORMAT, VERSION = "a3d_det2 lesions", 1
HIGHEST = 65535  # label


@dataclass(frozen=True, eq=False)
class FoundVolume:
    """What was found in a volume.

    Attributes:
        id: of the volume.
        boxes: (n, 6); one that is none hits nothing.
        scores: (n,); lesions with NaN are left out.
        centers: (n, 3) voxels; None takes the middle of the boxes.
        long_mm, short_mm, volume_mm3: (n,) measurements, NaN where they are not known; None is nowhere.
        labels: gives the label map, on the grid of the truth; None where there is none.
        numbers: (n,) int, of the lesions in it.
    """

    id: str
    boxes: np.ndarray
    scores: np.ndarray
    centers: np.ndarray | None = None
    long_mm: np.ndarray | None = None
    short_mm: np.ndarray | None = None
    volume_mm3: np.ndarray | None = None
    labels: Callable[[], np.ndarray] | None = None
    numbers: np.ndarray | None = None

    def __post_init__(self):
        boxes = np.asarray(self.boxes, dtype=np.float64)
        boxes = boxes.reshape(0, 6) if boxes.size == 0 else boxes
        scores = np.asarray(self.scores, dtype=np.float64).reshape(-1)
        if boxes.ndim != 2 or boxes.shape != (len(scores), 6):
            raise ValueError(
                f"{self.id}: expected a box of 6 numbers for each of {len(scores)} scores, got {boxes.shape}."
            )
        with np.errstate(invalid="ignore"):  # inf - inf
            middle = (boxes[:, :3] + boxes[:, 3:]) / 2
        found = {"boxes": boxes, "scores": scores}
        found["centers"] = middle if self.centers is None else np.asarray(self.centers, dtype=np.float64)
        for name in ("long_mm", "short_mm", "volume_mm3"):
            value = getattr(self, name)
            found[name] = np.full(len(scores), np.nan) if value is None else np.asarray(value, dtype=np.float64)
        for name, value in found.items():
            object.__setattr__(self, name, value)


def read_results(path: str, volumes: Sequence[TrueVolume], tight: bool = False) -> tuple[list[FoundVolume], list[str]]:
    """Read what was found in each of the volumes.

    Args:
        path: a CSV file with the columns volume, x1, y1, z1, x2, y2, z2, score; or a folder that has, for each volume,
            a folder of its name with what ``a3d-predict`` wrote.
        volumes: the ground truth.
        tight: whether to take the boxes of ``a3d-predict`` without the detector's margin.

    Returns:
        one for each volume, and warnings: what is suspicious, with how often.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it cannot be understood, or names a volume that is not among ``volumes``.
    """
    if os.path.isdir(path):
        found, warnings = _read_folder(path, volumes, tight)
    else:
        found, warnings = _read_csv(path, volumes), []
    return found, [*warnings, *suspicious(found, volumes)]


def suspicious(found: Sequence[FoundVolume], volumes: Sequence[TrueVolume]) -> list[str]:
    """What of results looks wrong, with how often: a sentence each."""
    boxes = np.concatenate([np.zeros((0, 6)), *(one.boxes for one in found)])
    scores = np.concatenate([np.zeros(0), *(one.scores for one in found)])
    outside = sum(_outside(one.boxes, volume.shape) for one, volume in zip(found, volumes, strict=True))
    counts = (
        (int(np.isnan(scores).sum()), "have NaN as their score; without a place in the order they are left out"),
        (int((~is_box(boxes)).sum()), "have a box that is not finite or of negative size; they hit nothing"),
        (outside, "lie outside of their volume, all or in part"),
    )
    return [f"{count} of {len(scores)} results {what}." for count, what in counts if count]


def _outside(boxes: np.ndarray, shape: tuple[int, int, int] | None) -> int:
    if shape is None or not len(boxes):
        return 0
    with np.errstate(invalid="ignore"):
        return int(((boxes[:, :3] < -0.5) | (boxes[:, 3:] > np.array(shape) - 0.5)).any(axis=1).sum())


def _read_folder(path: str, volumes: Sequence[TrueVolume], tight: bool) -> tuple[list[FoundVolume], list[str]]:
    names = sorted(name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name, RESULTS)))
    if not names:
        raise ValueError(f"{path}: expected a folder for each volume with its {RESULTS}, got none.")
    _check_known(path, names, volumes)
    found = []
    for volume in volumes:
        if volume.id in names:
            found.append(read_lesions(os.path.join(path, volume.id), volume, tight))
        else:
            found.append(FoundVolume(volume.id, np.zeros((0, 6)), np.zeros(0)))
    missing = len(volumes) - len(names)
    return found, [
        f"{missing} of {len(volumes)} volumes have no results: nothing is taken as found."
    ] if missing else []


def read_lesions(folder: str, volume: TrueVolume, tight: bool = False) -> FoundVolume:
    """Read what ``a3d-predict`` wrote of a volume.

    Args:
        folder: with lesions.json and, if it is to be used, lesions.nii.gz.
        volume: the ground truth on the same grid.
        tight: see :func:`read_results`.

    Raises:
        ValueError: if the file cannot be understood, or is of another grid than the label map of the truth.
    """
    path = os.path.join(folder, RESULTS)
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected results as JSON, got a damaged file ({error}).") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path}: expected results of the format {FORMAT!r}, version {VERSION}, got another one.")
    try:
        lesions = content["lesions"]
        boxes = np.array(
            [one["tight_box_voxel" if tight else "box_voxel"] for one in lesions], dtype=np.float64
        ).reshape(-1, 6)
        centers = np.array([one["center_voxel"] for one in lesions], dtype=np.float64).reshape(-1, 3)
        places = np.array([one["center_lps_mm"] for one in lesions], dtype=np.float64).reshape(-1, 3)
        sizes = {
            name: np.array([one[key] for one in lesions], dtype=np.float64)
            for name, key in (("long_mm", "long_axis_mm"), ("short_mm", "short_axis_mm"), ("volume_mm3", "volume_mm3"))
        }
        scores = np.array([one["score"] for one in lesions], dtype=np.float64)
        numbers = np.array([one["id"] for one in lesions], dtype=np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected lesions with their measurements, got something else ({error!r})."
        ) from error
    if volume.affine is not None and len(centers):
        expected = (centers @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * [-1, -1, 1]
        error = np.abs(expected - places).max()
        if not error < 1:
            raise ValueError(f"{path}: expected lesions on the grid of the label map, got some {error:.1f} mm from it.")
    labels = os.path.join(folder, LABELS)
    load = _label_map(labels, volume) if os.path.isfile(labels) else None
    return FoundVolume(volume.id, boxes, scores, centers, **sizes, labels=load, numbers=numbers)


def _label_map(path: str, volume: TrueVolume) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        import nibabel

        try:
            image = nibabel.load(path)
            values = np.asarray(image.dataobj)
        except Exception as error:  # nibabel says nowhere what it raises for a damaged file
            raise ValueError(f"{path}: expected a label map as NIfTI, got a damaged file ({error}).") from error
        if volume.shape is not None and values.shape != volume.shape:
            raise ValueError(f"{path}: expected a label map of {volume.shape} voxels, got {values.shape}.")
        if volume.affine is not None and not np.allclose(image.affine, volume.affine, atol=0.1):
            raise ValueError(f"{path}: expected the label map on the grid of the truth, got another affine.")
        if values.dtype.kind not in "iu" or values.min(initial=0) < 0 or values.max(initial=0) > HIGHEST:
            raise ValueError(f"{path}: expected labels, whole numbers from 0 to {HIGHEST}, got other values.")
        return values

    return load


def _read_csv(path: str, volumes: Sequence[TrueVolume]) -> list[FoundVolume]:
    rows: dict[str, list[list[float]]] = {volume.id: [] for volume in volumes}
    for line, row in read_table(path, ("volume", *BOX, "score")):
        if row["volume"] not in rows:
            _check_known(f"{path}, line {line}", [row["volume"]], volumes)
        rows[row["volume"]].append(numbers(path, line, row, (*BOX, "score")))
    arrays = {name: np.array(values, dtype=np.float64).reshape(-1, 7) for name, values in rows.items()}
    return [FoundVolume(name, values[:, :6], values[:, 6]) for name, values in arrays.items()]


def _check_known(where: str, names: Iterable[str], volumes: Sequence[TrueVolume]) -> None:
    known = {volume.id for volume in volumes}
    for name in names:
        if name not in known:
            example = f", such as {volumes[0].id!r}" if volumes else ""
            raise ValueError(
                f"{where}: expected a volume of the ground truth, which has {len(known)}{example}; got "
                f"{shortened(name)}."
            )
