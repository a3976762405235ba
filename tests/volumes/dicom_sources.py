"""A CT stored in DICOM in all the ways that results must be right for, and lesions within it."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from a3d_det2.volumes import Detection, Lesion, Mask, Volume
from a3d_det2.volumes.linking import Linked
from a3d_det2.volumes.measurement import measure_lesions
from a3d_det2.volumes.phantom import random_volume, write_dicom

SIZE, MARGIN = 64, np.array([2.0, 2.0])  # pixels


def write_source(folder: Path, kind: str) -> None:
    """Write the series of a kind, one of ``KINDS``."""
    phantom = random_volume(5, size=SIZE, slice_interval=5.0, length=100.0)
    if kind in STORAGES:
        write_dicom(str(folder), phantom, **STORAGES[kind])
        return
    write_dicom(str(folder), phantom, doubled=[7] if kind == "enhanced with a double" else ())
    change = TURNS.get(kind)
    if change:
        for path in folder.iterdir():
            image = pydicom.dcmread(path)
            change(image)
            image.save_as(path)
    else:
        write_enhanced(folder, per_frame=kind != "enhanced")


def transpose(image) -> None:
    """Columns run to the back and rows to the left."""
    image.PixelData = np.ascontiguousarray(image.pixel_array.T).tobytes()
    image.ImageOrientationPatient = image.ImageOrientationPatient[3:] + image.ImageOrientationPatient[:3]


def mirror(image) -> None:
    """Columns run to the right."""
    spacing, axis = float(image.PixelSpacing[1]), np.array(image.ImageOrientationPatient[:3], dtype=float)
    corner = np.array(image.ImagePositionPatient, dtype=float) + (SIZE - 1) * spacing * axis
    image.PixelData = np.ascontiguousarray(image.pixel_array[:, ::-1]).tobytes()
    image.ImageOrientationPatient = [*(-axis), *image.ImageOrientationPatient[3:]]
    image.ImagePositionPatient = [round(v, 8) for v in corner]


STORAGES = {
    "axial": {},
    "feet first": {"feet_first": True},
    "tilted": {"tilt": 12.0},
    "oblique": {"oblique": 5.0},
    "gapped": {"missing": [6]},
    "doubled": {"doubled": [7]},
    "JPEG 2000": {"syntax": "j2k"},
}
TURNS = {"transposed": transpose, "mirrored": mirror}
KINDS = (*STORAGES, *TURNS, "enhanced", "enhanced with a double")


def write_enhanced(folder: Path, per_frame: bool) -> None:
    """Make one multi-frame image of the single ones, in no order of place, with the orientation of all frames together
    or that of each."""
    paths = sorted(folder.iterdir())
    images = [pydicom.dcmread(path) for path in paths]
    whole = images[0]
    groups = []
    for one in images:
        group, plane, place, measures, values = (pydicom.Dataset() for _ in range(5))
        plane.ImageOrientationPatient, place.ImagePositionPatient = (
            one.ImageOrientationPatient,
            one.ImagePositionPatient,
        )
        measures.PixelSpacing, measures.SliceThickness = one.PixelSpacing, one.SliceThickness
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = one.RescaleSlope, one.RescaleIntercept, "HU"
        group.PlanePositionSequence = [place]
        common = {
            "PlaneOrientationSequence": [plane],
            "PixelMeasuresSequence": [measures],
            "PixelValueTransformationSequence": [values],
        }
        for name, sequence in common.items() if per_frame else ():
            setattr(group, name, sequence)
        groups.append(group)
    shared = pydicom.Dataset()
    for name, sequence in common.items() if not per_frame else ():
        setattr(shared, name, sequence)
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], groups
    whole.NumberOfFrames = len(images)
    whole.PixelData = b"".join(one.PixelData for one in images)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for name in "ImagePositionPatient ImageOrientationPatient PixelSpacing RescaleSlope RescaleIntercept".split():
        delattr(whole, name)
    for path in paths:
        path.unlink()
    whole.save_as(folder / "enhanced.dcm")


def make_lesions(volume: Volume) -> list[Lesion]:
    """Lesions of no symmetry: two that overlap, one that goes over a gap, one of boxes, and one that lies under another
    altogether."""
    rng = np.random.default_rng(0)

    def mask(top, left, height, width):
        pixels = rng.random((height, width)) < 0.7
        pixels[0, 0] = pixels[-1, 0] = pixels[-1, -1] = True
        return Mask(top, left, pixels)

    def detection(index, top, left, height, width, score, has_mask=True):
        box = np.array([left, top, left + width - 1, top + height - 1], dtype=float)
        return Detection(index, box, score, mask(top, left, height, width) if has_mask else None)

    full = [Detection(k, np.array([40.0, 10, 51, 17]), 0.9, Mask(10, 40, np.ones((8, 12), bool))) for k in (2, 3)]
    hidden = [Detection(k, np.array([42.0, 12, 45, 14]), 0.2, Mask(12, 42, np.ones((3, 4), bool))) for k in (2, 3)]
    found = [
        Linked(full, 0.95),
        Linked([detection(k, 20 + k, 8, 9, 14, 0.8) for k in (4, 5, 6, 7)], 0.8),
        Linked([detection(k, 26 + k, 12, 7, 9, 0.6) for k in (5, 6)], 0.6),
        Linked([detection(k, 45, 30, 9, 12, 0.5, has_mask=False) for k in (10, 11, 12)], 0.5),
        Linked(hidden, 0.2),
    ]
    return measure_lesions(found, volume, MARGIN)
