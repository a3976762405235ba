"""Phantom volumes as files: NIfTI, DICOM and DeepLesion's PNG, stored in any of the ways that real ones are.

Writing NIfTI needs nibabel, DICOM pydicom. The same volume and arguments give the same bytes.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

from ..data.dl_info import SPLITS
from ..data.phantom import COLUMNS
from ..data.png import HU_OFFSET
from ..data.png import write_png as write_png_slice
from ..data.recist import recist_box
from ..files import replacing
from .phantom import Blob, PhantomVolume, labels, random_volume, render, truth

FORMATS = ("nifti", "dicom", "png")
SYNTAXES = ("explicit", "j2k", "rle")
STORED_OFFSET = 1024  # that DICOM files add to HU
SMALLEST = 3.0  # px of the long axis of a lesion on a key slice to learn from
CROWDING = 3.0  # of volumes to train on
ATTEMPTS = 100  # volumes to look for a key slice in


def write_nifti(
    path: str,
    volume: PhantomVolume,
    codes: str = "LPS",
    *,
    dtype: type = np.int16,
    endian: str = "<",
    slope: float | None = None,
) -> None:
    """Write a volume as .nii or .nii.gz.

    Args:
        path: of the file.
        volume: what to write.
        codes: where the three array axes point to, such as "RAS"; "LPI" is the order of :class:`PhantomVolume`.
        dtype: NumPy type of the voxels.
        endian: byte order, "<" or ">".
        slope: HU per stored number, with an intercept of -1024; None stores HU.
    """

    def drawn(k: int) -> np.ndarray:
        hu = render(volume, k)
        stored = (hu + STORED_OFFSET) / slope if slope else hu
        return np.rint(stored) if np.issubdtype(dtype, np.integer) else stored

    _save_nifti(path, volume, drawn, codes, dtype, endian, slope)


def write_labels(path: str, volume: PhantomVolume, codes: str = "LPS") -> None:
    """Write the label map, uint8, on the grid of :func:`write_nifti` with the same ``codes``."""
    _save_nifti(path, volume, lambda k: labels(volume, k), codes, np.uint8, "<", None)


def _save_nifti(path, volume: PhantomVolume, draw: Callable, codes, dtype, endian, slope) -> None:
    import nibabel
    from nibabel import orientations

    depth, height, width = volume.shape
    array = np.empty((depth, height, width), dtype=np.dtype(dtype).newbyteorder(endian))
    for k in range(depth):
        array[k] = draw(k)
    # (D, H, W) -> (W, H, D), whose axes point to left, back and feet.
    to_codes = orientations.ornt_transform(orientations.axcodes2ornt("LPI"), orientations.axcodes2ornt(codes))
    array = orientations.apply_orientation(array.transpose(2, 1, 0), to_codes)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine = to_ras @ volume.affine @ orientations.inv_ornt_aff(to_codes, (width, height, depth))
    header = nibabel.Nifti1Header(endianness=endian)
    header.set_data_dtype(dtype)
    image = nibabel.Nifti1Image(array, affine, header)
    image.set_sform(affine, 1)
    if volume.tilt:  # which a qform cannot say
        image.set_qform(None, 0)
    else:
        image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    if slope:
        image.header.set_slope_inter(slope, -STORED_OFFSET)
    nibabel.save(image, path)


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
        image.RescaleIntercept, image.RescaleSlope = f"{-STORED_OFFSET}", "1"
        stored = (np.rint(hu) + STORED_OFFSET).astype("<i2")
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


def write_png(folder: str, volume: PhantomVolume) -> None:
    """Write a volume as a DeepLesion of one series: ``Images_png/SERIES/NNN.png``, and ``DL_info.csv`` with a row of
    the test split for each lesion on its central slice.

    Raises:
        ValueError: if its slices are not axial.
    """
    patient = volume.seed[-1] + 1
    found = [(lesion["number"], lesion["central_slice"]) for lesion in truth(volume)["lesions"]]
    rows = [_row(volume, patient, "test", k, 0, volume.depth - 1, number) for number, k in found]
    _write_slices(os.path.join(folder, "Images_png"), volume, patient, 0, volume.depth - 1)
    write_rows(os.path.join(folder, "DL_info.csv"), rows)


def write_rows(csv_path: str, rows: list[dict]) -> None:
    """Write a DL_info.csv, in one step."""
    with replacing(csv_path) as part, open(part, "w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class VolumeOptions:
    """How to invent volumes; see :func:`random_volume`.

    Attributes:
        intervals: slice intervals to choose from; empty leaves the choice to :func:`random_volume`.
    """

    size: int = 256
    intervals: tuple[float, ...] = ()
    lesion_size: tuple[float, float] = (5.0, 40.0)
    lesion_depth: tuple[float, float] | None = None
    crowding: float = 1.0
    seed: int = 0

    def invent(self, index: int) -> PhantomVolume:
        interval = None
        if self.intervals:
            interval = float(np.random.default_rng([self.seed, index, 0, 1]).choice(self.intervals))
        return random_volume(
            index,
            size=self.size,
            slice_interval=interval,
            lesion_size=self.lesion_size,
            lesion_depth=self.lesion_depth,
            crowding=self.crowding,
            seed=self.seed,
        )


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


def write_training_series(
    number: int, split: str, patient: int, image_root: str, context: float, options: VolumeOptions
) -> list[dict]:
    """Write the slices around one lesion of a random volume, to learn from.

    The volume is none of those of :meth:`VolumeOptions.invent` for an index below a million, nor of another number or
    split. In training it is ``CROWDING`` times as crowded, as one slice has to show as many vessels of all kinds as a
    volume does. Every lesion on the key slice is annotated; a key slice with one whose long axis is shorter than ``SMALLEST``
    there is not taken.

    Args:
        number: from 0, of the series in its split.
        split: "train", "val" or "test".
        patient: number to call it by.
        image_root: folder ``Images_png``.
        context: mm of slices on either side of the key slice.
        options: how to invent the volume.

    Returns:
        its rows of DL_info.csv, one per lesion on the key slice.

    Raises:
        ValueError: if none of ``ATTEMPTS`` volumes has such a key slice.
    """
    if split == "train":
        options = replace(options, crowding=CROWDING * options.crowding)
    for attempt in range(ATTEMPTS):
        index = 1_000_000 * SPLITS[split] + ATTEMPTS * number + attempt
        volume = options.invent(index)
        rng = np.random.default_rng([*volume.seed, 0, 3])
        for lesion in rng.permutation(len(volume.lesions)):
            key = round(volume.lesions[lesion].z / volume.slice_interval)
            there = {n: _recist(volume, one, key) for n, one in enumerate(volume.lesions, start=1)}
            there = {n: recist for n, recist in there.items() if recist is not None}
            if all(np.hypot(*(recist[1] - recist[0])) >= SMALLEST for recist in there.values()):
                beside = math.ceil(context / volume.slice_interval)
                first, last = max(key - beside, 0), min(key + beside, volume.depth - 1)
                _write_slices(image_root, volume, patient, first, last)
                return [_row(volume, patient, split, key, first, last, n) for n in there]
    raise ValueError(
        f"Expected a key slice whose lesions are {SMALLEST:g} px or more, got none in {ATTEMPTS} volumes of "
        f"{options.size} x {options.size} pixels with lesions of {options.lesion_size} mm."
    )


def _series(patient: int) -> str:
    return f"{patient:06d}_01_01"


def _write_slices(image_root: str, volume: PhantomVolume, patient: int, first: int, last: int) -> None:
    """Write slices from first to last; slice k is number k + 1, as all that counts in DeepLesion is from 1."""
    folder = os.path.join(image_root, _series(patient))
    os.makedirs(folder, exist_ok=True)
    for k in range(first, last + 1):
        stored = np.clip(np.rint(render(volume, k)) + HU_OFFSET, 0, 65535).astype(np.uint16)
        write_png_slice(os.path.join(folder, f"{k + 1:03d}.png"), stored)


def _recist(volume: PhantomVolume, lesion: Blob, k: int) -> np.ndarray | None:
    """RECIST points of a lesion on slice k, (4, 2) in 0-based pixels; None if it is not there."""
    if volume.oblique or volume.tilt:
        raise ValueError(
            f"Expected axial slices, which DeepLesion has, got some turned by {volume.oblique + volume.tilt:g} degrees."
        )
    z = k * volume.slice_interval
    if not lesion.first < z < lesion.last:
        return None
    return lesion.recist(z) / volume.pixel + (volume.width - 1) / 2


def _row(volume: PhantomVolume, patient: int, split: str, k: int, first: int, last: int, number: int) -> dict:
    """The row of DL_info.csv for a lesion on slice k of a series that has the slices from first to last."""
    lesion = volume.lesions[number - 1]
    recist = _recist(volume, lesion, k)
    diameters = np.hypot(*(recist[0] - recist[1])), np.hypot(*(recist[2] - recist[3]))
    x, y = recist.mean(axis=0) / volume.width
    values = (
        f"{_series(patient)}_{k + 1:03d}.png",
        patient,
        1,
        1,
        k + 1,
        _join(recist.ravel() + 1),
        _join(recist_box(recist) + 1),
        _join(diameters),
        _join((x, y, lesion.z / volume.body.length)),
        -1 if split == "train" else 7,  # soft tissue
        0,
        f"{first + 1}, {last + 1}",
        _join((volume.pixel, volume.pixel, volume.slice_interval)),
        f"{volume.width}, {volume.width}",
        "-175, 275",
        "",
        "NaN",
        SPLITS[split],
    )
    return dict(zip(COLUMNS, values, strict=True))


def _join(values) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
