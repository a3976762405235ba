"""A volume as DICOM images, for results to refer to where the files that it came from cannot be."""

import os
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ..origin import Origin
from ..volume import Volume
from .equipment import Algorithm, equipment
from .source import SourceImages, is_valid_uid


def mint_origin(volume: Volume) -> Volume:
    """The volume as a series of images that are yet to be written, in its own orientation. UIDs of study and frame of
    reference stay where there are valid ones; all others are new."""
    known = volume.origin.attributes if volume.origin else {}
    attributes = {name: found for name, found in known.items() if len(found) == 1}  # of images that agree
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if name not in attributes or not is_valid_uid(attributes[name][0][0]):
            attributes[name] = [(generate_uid(),)]
    axes = volume.affine[:3, :2] / np.linalg.norm(volume.affine[:3, :2], axis=0)
    origin = Origin(
        sop_class=CTImageStorage,
        series=generate_uid(),
        instances=tuple(generate_uid() for _ in volume.hu),
        frames=None,
        size=volume.hu.shape[1:],
        pixel=volume.spacing[::-1],
        directions=axes.T,
        positions=np.array([volume.position_of(0, 0, index) for index in range(len(volume.hu))]),
        attributes=attributes,
    )
    return replace(volume, origin=origin, stored_axes=(0, 1, 2), stored_flips=(False, False, False))


def write_converted_ct(
    folder: str, volume: Volume, images: SourceImages, algorithm: Algorithm, series_number: int
) -> None:
    """Write the images of a volume from :func:`mint_origin` as CT Image Storage, a file for each slice, in HU.

    Raises:
        OSError: if they cannot be written.
    """
    os.makedirs(folder)
    common = Dataset()
    made_by = equipment(algorithm)
    common.Manufacturer, common.ManufacturerModelName = made_by["manufacturer"], made_by["manufacturer_model_name"]
    common.SoftwareVersions = made_by["software_versions"]
    common.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    common.SeriesNumber, common.SeriesDescription = series_number, "CT, converted"
    common.ContentDate = common.ContentTime = common.AcquisitionNumber = common.KVP = None
    common.PatientPosition = common.Laterality = ""
    common.SamplesPerPixel, common.PhotometricInterpretation = 1, "MONOCHROME2"
    common.BitsAllocated, common.BitsStored, common.HighBit, common.PixelRepresentation = 16, 16, 15, 1
    common.RescaleSlope, common.RescaleIntercept, common.RescaleType = "1", "0", "HU"
    for number, (one, hu) in enumerate(zip(images.slices, volume.hu, strict=True), 1):
        image = Dataset()
        for described in (common, one):
            image.update({element.tag: element for element in described})
        image.InstanceNumber = number
        image.PixelData = hu.astype("<i2").tobytes()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(os.path.join(folder, f"{number:04d}.dcm"), enforce_file_format=True)
