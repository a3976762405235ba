"""The images that results refer to, described by as little as that takes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage
from pydicom.valuerep import DA, TM, format_number_as_ds

from ..origin import Origin
from ..volume import Volume

MULTI_FRAME = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
# By these an archive puts an object to its patient and study. The standard demands all but OPTIONAL, if need be empty.
IDENTITY = (
    "PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
    "ReferringPhysicianName"
).split()
OPTIONAL = ("IssuerOfPatientID",)
# Of all else a value that is too long is still the one in the archive.
FORMS = {"DA": (r"\d{8}", DA), "TM": (r"\d\d([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", TM)}
SEXES = ("M", "F", "O")


def source_problem(volume: Volume) -> str:
    """Why results in DICOM cannot refer to the images of a volume; "" if they can."""
    origin = volume.origin
    if origin is None:
        return "expected a CT in DICOM, which results can refer to, got another format"
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        if len(found := origin.attributes.get(name, ())) > 1:
            return f"expected images with one {name}, got {len(found)} different ones"
    uids = {
        "study": [origin.value("StudyInstanceUID")],
        "frame of reference": [origin.value("FrameOfReferenceUID")],
        "series": [origin.series],
        "image": origin.instances,
    }
    for what, values in uids.items():
        for value in values:
            if not is_valid_uid(value):
                return (
                    f"expected a UID of the {what}, got {value!r}"
                    if value
                    else f"expected a UID of the {what}, got none"
                )
    if origin.frames is None:
        if origin.sop_class != CTImageStorage:
            return f"expected images of the class CT Image Storage, got {_class_name(origin)}"
        if len(set(origin.instances)) < len(origin.instances):
            return "expected images with a UID each, got some with the same"
        return ""
    if origin.sop_class not in MULTI_FRAME:
        return f"expected a multi-frame image of the class Enhanced CT Image Storage, got {_class_name(origin)}"
    if len(set(origin.instances)) > 1:
        return f"expected one multi-frame image, got {len(set(origin.instances))}"
    return ""


def is_valid_uid(text: str) -> bool:
    return UID(text, validation_mode=config.IGNORE).is_valid


def _class_name(origin: Origin) -> str:
    return UID(origin.sop_class).name if origin.sop_class else "several or none"


@dataclass(frozen=True, eq=False)
class SourceImages:
    """The images of a volume as datasets, without pixels.

    Attributes:
        slices: a dataset for each slice of the volume, with its geometry as that of a single image; those of a
            multi-frame image have its UID.
        frames: number of each slice in the multi-frame image, from 1; None of single images.
    """

    slices: Sequence[Dataset]
    frames: Sequence[int] | None

    def frame(self, index: int) -> list[int] | None:
        """The frame that a slice is, as references name it; None of a single image."""
        return None if self.frames is None else [self.frames[index]]

    def instances(self, indices: Sequence[int]) -> list[Dataset]:
        """The images of slices, each once."""
        return list({self.slices[i].SOPInstanceUID: self.slices[i] for i in indices}.values())

    def of_segmentation(self) -> list[Dataset]:
        """What a segmentation of all slices is made for: a dataset for each, or the one multi-frame image."""
        return list(self.slices) if self.frames is None else [self._multi_frame()]

    def _multi_frame(self) -> Dataset:
        """Frames that are no slice of the volume are put where none of its slices is."""
        first = self.slices[0]
        image = Dataset()
        image.update({element.tag: element for element in first})
        shared, measures, orientation = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
        measures.SpacingBetweenSlices = first.SpacingBetweenSlices
        orientation.ImageOrientationPatient = first.ImageOrientationPatient
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
        places = dict(zip(self.frames, (one.ImagePositionPatient for one in self.slices), strict=True))
        groups = []
        for number in range(1, max(self.frames) + 1):
            group, position = Dataset(), Dataset()
            position.ImagePositionPatient = places.get(number, ["1e6", "1e6", "1e6"])
            group.PlanePositionSequence = [position]
            groups.append(group)
        image.NumberOfFrames = len(groups)
        image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], groups
        return image


def source_images(volume: Volume, pseudonymous: bool = False) -> SourceImages:
    """Describe the images of a volume: their UIDs and geometry, and of the patient and study what the standard demands
    of all that belongs to it.

    Args:
        volume: one of which :func:`source_problem` says nothing.
        pseudonymous: leaves out all of patient and study but UIDs.
    """
    origin = volume.origin
    common = _study_attributes(origin, pseudonymous)
    common.SOPClassUID, common.SeriesInstanceUID, common.Modality = origin.sop_class, origin.series, "CT"
    common.Rows, common.Columns = origin.size
    common.PixelSpacing = [decimal(v) for v in origin.pixel]
    # Not what the files say, which need not be how far the slices lie apart: readers take a voxel's depth from it.
    common.SliceThickness = common.SpacingBetweenSlices = decimal(volume.slice_interval)
    common.ImageOrientationPatient = [decimal(v) for v in origin.directions.ravel()]
    slices = []
    for instance, position in zip(origin.instances, origin.positions, strict=True):
        image = Dataset()
        image.update({element.tag: element for element in common})
        image.SOPInstanceUID, image.ImagePositionPatient = instance, [decimal(v) for v in position]
        slices.append(image)
    return SourceImages(slices, None if origin.frames is None else [number + 1 for number in origin.frames])


def _study_attributes(origin: Origin, pseudonymous: bool) -> Dataset:
    """Those by which an object belongs to its patient and study. Dates, times and sexes that the standard does not know
    are left empty; of several values the first is taken."""
    found = Dataset()
    found.SpecificCharacterSet = "ISO_IR 192"
    for name in IDENTITY:
        value = "" if pseudonymous else origin.value(name)
        if name not in OPTIONAL or value:
            setattr(found, name, value if not value or _is_valid(name, value) else "")
    found.StudyInstanceUID, found.FrameOfReferenceUID = map(origin.value, ("StudyInstanceUID", "FrameOfReferenceUID"))
    found.PositionReferenceIndicator = ""
    if ("01",) in origin.attributes.get("LossyImageCompression", ()):  # what was made from such images stays marked
        found.LossyImageCompression = "01"
        for name in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if name in origin.attributes:
                setattr(found, name, list(origin.attributes[name][0]))
    return found


def _is_valid(name: str, value: str) -> bool:
    if name == "PatientSex":
        return value in SEXES
    form = FORMS.get(dictionary_VR(name))
    if form is None:
        return True
    pattern, parse = form
    try:
        return bool(re.fullmatch(pattern, value)) and parse(value) is not None
    except ValueError:
        return False


def decimal(value: float) -> str:
    """A number in the 16 characters that DICOM has for it."""
    return format_number_as_ds(round(float(value), 10) + 0.0)


def image_points(pixels: np.ndarray) -> np.ndarray:
    """Points of an image, (n, 2) of (column, row) with (0, 0) the centre of the first pixel, as DICOM counts them: from
    its corner."""
    return np.asarray(pixels, dtype=np.float64) + 0.5
