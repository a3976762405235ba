"""A volume of a set with its truth, in any format."""

import json
import os

from ...files import replacing
from .deeplesion import VolumeOptions, write_png
from .dicom import random_storage, write_dicom
from .ground_truth import truth
from .nifti import write_labels, write_nifti

FORMATS = ("nifti", "dicom", "png")


def write_volume(index: int, output: str, kind: str, options: VolumeOptions) -> int:
    """Write a volume with its truth: ``volume_NNN.nii.gz`` or the folder ``volume_NNN``, ``truth/volume_NNN.json`` and
    ``truth/volume_NNN_labels.nii.gz``.

    Args:
        index: from 0, of the volume.
        output: folder.
        kind: one of ``FORMATS``; a DICOM series is stored in a way drawn from :func:`random_storage`, which the truth
            repeats.
        options: how to invent it.

    Returns:
        how many lesions it has.
    """
    volume = options.invent(index)
    path = os.path.join(output, volume.name)
    storage = {}
    if kind == "nifti":
        write_nifti(f"{path}.nii.gz", volume)
    elif kind == "dicom":
        storage = random_storage(volume)
        volume = write_dicom(path, volume, **storage)
    else:
        write_png(path, volume)
    os.makedirs(os.path.join(output, "truth"), exist_ok=True)
    name = os.path.join(output, "truth", volume.name)
    write_labels(f"{name}_labels.nii.gz", volume)
    found = {**truth(volume), "format": kind, **storage}
    with replacing(f"{name}.json") as part, open(part, "w") as f:
        json.dump(found, f, indent=1)
    return len(found["lesions"])
