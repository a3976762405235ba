"""The results of a volume as files; docs/volumes.md describes them.

    lesions.json    all that is known of each lesion, and how it was found
    lesions.csv     a line for each lesion
    lesions.nii.gz  a label map on the grid of the input
    lesions.mrk.json    centres and boxes for 3D Slicer
    lesion_*.png    a picture of each lesion
    viewer.html     the whole volume with its lesions, for a browser
    dicom/          if asked for, what an archive takes, see dicom_results

Nothing but dicom/ names the patient, unless that is asked for: neither a path nor a description of the series is
written.
"""

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from .label_map import draw_labels, stored_grid, stored_indices
from .lesion import Lesion
from .markups import write_markups
from .pictures import write_pictures
from .search import FORMAT, RESULTS, read_results
from .viewer import write_viewer
from .volume import Volume

if TYPE_CHECKING:  # it needs highdicom
    from .dicom_results import DicomResults

VERSION = 1
OUTPUTS = ("labels", "markups", "pictures", "viewer")  # beside lesions.json and lesions.csv
COLUMNS = (
    "id score category measured_from slice long_axis_mm short_axis_mm extent_mm volume_mm3 x_lps_mm y_lps_mm z_lps_mm"
).split()
OURS = re.compile(r"lesions\.(json|csv|nii\.gz|mrk\.json)|lesion_\d+\.png|viewer\.html")
OUR_DICOM = re.compile(r"dicom(/(lesions_(seg|sr)\.dcm|ct(/\d{4,}\.dcm)?))?")  # only where lesions.json tells of it


def check_folder(folder: str) -> None:
    """
    Raises:
        FileExistsError: if ``folder`` is a file, a mount point, or holds something else than results, which would be
            lost.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise FileExistsError(f"{folder}: expected a folder for the results, got a file")
    if os.path.ismount(folder):
        raise FileExistsError(f"{folder}: expected a folder that can be renamed, got a mount point; name one within it")
    has_dicom = os.path.isdir(folder) and bool((read_results(folder) or {}).get("dicom"))
    for inside, folders, names in os.walk(folder):
        for name in sorted(folders + names):
            path = os.path.relpath(os.path.join(inside, name), folder)
            if not (OURS.fullmatch(path) or (has_dicom and OUR_DICOM.fullmatch(path))):
                raise FileExistsError(
                    f"{folder}: expected a new folder, an empty one or one with results alone, got one with {name!r}"
                )


@contextmanager
def replacing_folder(folder: str) -> Iterator[str]:
    """Write a folder in one step: until the block ends, ``folder`` holds what it held before, and then all that is new.

    Yields:
        a folder beside it, ``{folder}.{process id}.part``, to write into. It takes the place of ``folder`` when the
        block ends, and is removed when the block raises.

    Raises:
        OSError: see :func:`check_folder`, or it cannot be written.
    """
    folder = os.path.realpath(folder)
    check_folder(folder)
    part, old = f"{folder}.{os.getpid()}.part", f"{folder}.{os.getpid()}.old"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    try:
        yield part
        check_folder(folder)
        if os.path.isdir(folder):
            os.rename(folder, old)
        try:
            os.rename(part, folder)
        except OSError:
            if os.path.isdir(old):
                os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_results(
    folder: str,
    volume: Volume,
    lesions: Sequence[Lesion],
    *,
    box_margin: np.ndarray,
    how: dict,
    outputs: Sequence[str] = OUTPUTS,
    keep_identifiers: bool = False,
    dicom: "DicomResults | None" = None,
) -> None:
    """Write all results of a volume, lesions.json last; within :func:`replacing_folder` they appear in one step.

    Args:
        folder: to write into.
        volume, lesions: see :class:`.VolumePredictor`.
        box_margin: see :func:`.measure_lesions`.
        how: what the lesions were found by, for lesions.json.
        outputs: those of ``OUTPUTS`` to write.
        keep_identifiers: whether lesions.json says whose CT it is.
        dicom: writes the folder ``dicom``; None leaves it out.

    Raises:
        ValueError: if an output is unknown, or nothing in DICOM can refer to the volume.
        OSError: if something cannot be written.
    """
    if unknown := set(outputs) - set(OUTPUTS):
        raise ValueError(f"Unknown outputs {', '.join(sorted(unknown))}. Choose of {', '.join(OUTPUTS)}.")
    if "labels" in outputs or dicom:
        labels = draw_labels(volume, lesions, box_margin)
    writers: dict[str, Callable[[], object]] = {
        "labels": lambda: write_labels(os.path.join(folder, "lesions.nii.gz"), volume, labels),
        "markups": lambda: write_markups(os.path.join(folder, "lesions.mrk.json"), lesions),
        "pictures": lambda: write_pictures(folder, volume, lesions),
        "viewer": lambda: write_viewer(os.path.join(folder, "viewer.html"), volume, lesions),
    }
    for name in outputs:
        writers[name]()
    if dicom:
        dicom.write(os.path.join(folder, "dicom"), volume, lesions, labels)
    write_csv(os.path.join(folder, "lesions.csv"), lesions)
    with open(os.path.join(folder, RESULTS), "w", encoding="utf-8") as f:
        content = describe(volume, lesions, box_margin, how, keep_identifiers, has_dicom=dicom is not None)
        json.dump(content, f, indent=1, allow_nan=False)


def describe(
    volume: Volume,
    lesions: Sequence[Lesion],
    box_margin: np.ndarray,
    how: dict,
    keep_identifiers: bool = False,
    has_dicom: bool = False,
) -> dict:
    """What lesions.json says."""
    depth, height, width = volume.hu.shape
    return {
        "format": FORMAT,
        "version": VERSION,
        "notice": "Research use only, not a medical device.",
        "how": how,
        "dicom": has_dicom,
        "volume": {
            "columns": width,
            "rows": height,
            "slices": depth,
            "spacing_mm": list(volume.spacing),
            "slice_interval_mm": volume.slice_interval,
            "notes": list(volume.notes),
            **({"identifiers": dict(volume.identifiers), "name": volume.name} if keep_identifiers else {}),
        },
        "lesions": [_describe(lesion, volume, box_margin) for lesion in lesions],
    }


def _describe(lesion: Lesion, volume: Volume, box_margin: np.ndarray) -> dict:
    corners, tight = (
        np.sort(stored_indices(volume, box), axis=0) for box in (lesion.box_voxel, lesion.tight_box(box_margin))
    )
    return {
        "id": lesion.number,
        "score": lesion.score,
        "category": lesion.category,
        "measured_from": lesion.measured_from,
        "slice": lesion.largest,
        **({"instance_uid": volume.instances[lesion.largest]} if volume.instances else {}),
        "long_axis_mm": lesion.long_mm,
        "short_axis_mm": lesion.short_mm,
        "long_axis": lesion.long_axis.tolist(),
        "short_axis": lesion.short_axis.tolist(),
        "extent_mm": lesion.extent_mm,
        "volume_mm3": lesion.volume_mm3,
        "center_lps_mm": lesion.center.tolist(),
        "box_lps_mm": lesion.box.tolist(),
        "center_voxel": stored_indices(volume, lesion.center_voxel[None])[0].tolist(),
        "box_voxel": corners.tolist(),
        "tight_box_voxel": tight.tolist(),
        "slices": [
            {"slice": one.index, "box": one.box.tolist(), "score": None if math.isnan(one.score) else one.score}
            for one in lesion.slices
        ],
    }


def write_csv(path: str, lesions: Sequence[Lesion]) -> None:
    """Write a line for each lesion."""
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(COLUMNS)
        for one in lesions:
            sizes = one.long_mm, one.short_mm, one.extent_mm, one.volume_mm3, *one.center
            facts = one.number, one.score, one.category, one.measured_from, one.largest
            writer.writerow([*facts, *(f"{value:.2f}" for value in sizes)])


def write_labels(path: str, volume: Volume, labels: np.ndarray) -> None:
    """Write a label map, (D, H, W), on the grid of the input, as NIfTI."""
    import nibabel

    stored, affine = stored_grid(volume, labels)
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
