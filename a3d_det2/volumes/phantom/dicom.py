"""Phantom volumes as DICOM series, with the faults of real ones; needs pydicom. The same volume and arguments give the
same bytes."""

import os
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from .volume import PhantomVolume, render

SYNTAXES = ("explicit", "j2k", "rle")
OFFSET = 1024  # that the files add to HU


def write_dicom(
    folder: str,
    volume: PhantomVolume,
    *,
    feet_first: bool = False,
    oblique: float = 0.0,
    tilt: float = 0.0,
    localiser: bool = False,
    missing: Collection[int] = (),
    doubled: Collection[int] = (),
    syntax: str = "explicit",
) -> PhantomVolume:
    """Write a volume as CT Image Storage, a file per slice, named by UIDs that are in no order.

    Args:
        folder: to write to; made if it is not there.
        volume: what to write.
        feet_first: the patient entered the scanner with the feet, and slices are numbered from there.
        oblique, tilt: degrees; what :class:`PhantomVolume` says of them.
        localiser: write one as well, a coronal projection in a series of its own.
        missing: slices to leave out, from 0.
        doubled: slices to write twice.
        syntax: "explicit" (little endian, not compressed), "j2k" (JPEG 2000, lossless) or "rle".

    Returns:
        the volume with ``oblique`` and ``tilt``; its indices count missing slices too.

    Raises:
        ValueError: on another syntax.
    """
    if syntax not in SYNTAXES:
        raise ValueError(f"Expected one of the syntaxes {', '.join(SYNTAXES)}, got {syntax!r}.")
    volume = replace(volume, oblique=oblique, tilt=tilt)
    os.makedirs(folder, exist_ok=True)
    series = _DicomSeries(folder, volume, feet_first, syntax)
    projection = np.empty((volume.depth, volume.width), dtype=np.float32)
    for k in range(volume.depth):
        if k in missing and not localiser:
            continue
        hu = render(volume, k)
        projection[k] = hu.mean(axis=0)
        copies = () if k in missing else ("", "again") if k in doubled else ("",)
        for copy in copies:
            series.write_slice(k, hu, copy)
    if localiser:
        series.write_localiser(projection)
    return volume


def random_storage(volume: PhantomVolume) -> dict:
    """Draw arguments of :func:`write_dicom` as hospitals would: most series are plain, some feet first, oblique,
    tilted, compressed, with a localiser, a slice missing or a slice given twice. JSON holds them."""
    rng = np.random.default_rng([*volume.seed, 0, 2])
    turned = rng.choice(["no", "oblique", "tilt"], p=[0.6, 0.2, 0.2])
    angle = round(float(rng.uniform(3, 10) * rng.choice([-1, 1])), 2)
    missing, doubled = (int(k) for k in rng.integers(1, max(volume.depth - 1, 2), 2))
    return {
        "feet_first": bool(rng.random() < 0.3),
        "oblique": angle if turned == "oblique" else 0.0,
        "tilt": angle if turned == "tilt" else 0.0,
        "localiser": bool(rng.random() < 0.4),
        "missing": [missing] if rng.random() < 0.25 else [],
        "doubled": [doubled] if rng.random() < 0.15 else [],
        "syntax": str(rng.choice(SYNTAXES, p=[0.6, 0.2, 0.2])),
    }


class _DicomSeries:
    """Writes the images of one study."""

    def __init__(self, folder: str, volume: PhantomVolume, feet_first: bool, syntax: str):
        self.folder, self.volume, self.feet_first, self.syntax = folder, volume, feet_first, syntax

    def uid(self, *what) -> str:
        """The same UID for the same thing of the same volume."""
        from pydicom.uid import generate_uid

        one = self.volume
        sources = ("a3d_det2 phantom", *one.seed, one.shape, one.slice_interval, one.oblique, one.tilt, *what)
        return generate_uid(entropy_srcs=[str(source) for source in sources])

    def write_slice(self, k: int, hu: np.ndarray, copy: str = "") -> None:
        affine = self.volume.affine
        number = self.volume.depth - k if self.feet_first else k + 1
        image = self._image("axial", k, copy)
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.SeriesNumber, image.SeriesDescription = 2, f"Phantom {self.volume.slice_interval:g} mm"
        image.InstanceNumber = number
        image.SliceThickness = _decimal(self.volume.slice_interval)
        image.GantryDetectorTilt, image.RescaleType = _decimal(self.volume.tilt), "HU"
        self._place(image, self.volume.directions[:2], affine[:3, 3] + k * affine[:3, 2], [self.volume.pixel] * 2)
        self._save(image, hu)

    def write_localiser(self, projection: np.ndarray) -> None:
        volume = self.volume
        image = self._image("localiser")
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        image.SeriesNumber, image.SeriesDescription, image.InstanceNumber = 1, "Localiser", 1
        image.SliceThickness = _decimal(volume.width * volume.pixel)
        corner = volume.to_patient(-(volume.width - 1) / 2 * volume.pixel, 0, 0)
        directions = np.array([[1.0, 0, 0], [0, 0, -1]])
        self._place(image, directions, corner, [volume.slice_interval, volume.pixel])
        self._save(image, projection)

    def _image(self, *what):
        """A dataset with what is the same for all images."""
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

        image, number = Dataset(), self.volume.seed[-1] + 1
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = self.uid(*what)
        image.SpecificCharacterSet = "ISO_IR 100"
        image.PatientName, image.PatientID = f"Phantom^Volume {number:03d}", f"PHANTOM{number:03d}"
        image.PatientBirthDate, image.PatientSex = "", "O"
        image.StudyInstanceUID, image.StudyID = self.uid("study"), "1"
        image.StudyDate = image.SeriesDate = image.ContentDate = image.AcquisitionDate = "20000101"
        image.StudyTime = image.SeriesTime = image.ContentTime = image.AcquisitionTime = "120000"
        image.StudyDescription, image.ReferringPhysicianName, image.AccessionNumber = "Synthetic CT", "", ""
        image.Modality, image.SeriesInstanceUID = "CT", self.uid("series", what[0])
        image.BodyPartExamined = "WHOLEBODY"
        image.PatientPosition = "FFS" if self.feet_first else "HFS"
        image.FrameOfReferenceUID, image.PositionReferenceIndicator = self.uid("frame of reference"), ""
        image.Manufacturer, image.ManufacturerModelName = "a3d_det2", "Phantom"
        image.DeviceSerialNumber, image.SoftwareVersions = "0", "1"
        image.AcquisitionNumber, image.KVP = 1, "120"
        return image

    def _place(self, image, directions: np.ndarray, corner: np.ndarray, spacing: list[float]) -> None:
        image.ImageOrientationPatient = [_decimal(v) for v in directions.ravel()]
        image.ImagePositionPatient = [_decimal(v) for v in corner]
        image.PixelSpacing = [_decimal(v) for v in spacing]

    def _save(self, image, hu: np.ndarray) -> None:
        from pydicom.encaps import encapsulate
        from pydicom.uid import JPEG2000Lossless, RLELossless

        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows, image.Columns = hu.shape
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleIntercept, image.RescaleSlope = f"{-OFFSET}", "1"
        stored = (np.rint(hu) + OFFSET).astype("<i2")
        image.PixelData = stored.tobytes()
        if self.syntax == "rle":
            image.compress(RLELossless, generate_instance_uid=False)
        elif self.syntax == "j2k":
            # pydicom's own encoder would need pylibjpeg as well, which nothing else does.
            from openjpeg.utils import encode_array

            image.file_meta.TransferSyntaxUID = JPEG2000Lossless
            image.PixelData = encapsulate([encode_array(stored, bits_stored=16)])
            image["PixelData"].is_undefined_length = True
        image.save_as(os.path.join(self.folder, f"{image.SOPInstanceUID}.dcm"), enforce_file_format=True)


def _decimal(value: float) -> str:
    """A number in the 16 characters that DICOM has for it."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(round(float(value), 10) + 0.0)
