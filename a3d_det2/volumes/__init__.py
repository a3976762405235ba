"""Whole CT volumes: reading them from DICOM and NIfTI, in the orientation that the models have learned.

    reading     any of the formats, by a path
    volume      what is read: Hounsfield units, and where each voxel lies in the patient
    dicom       series of DICOM slices, sorted by where they lie
    nifti       .nii and .nii.gz

Needs pydicom and nibabel: ``pip install 'a3d_det2[volumes]'``.
"""

from .dicom import list_series
from .reading import read_volume
from .volume import UnreadableVolume, Volume

__all__ = ["UnreadableVolume", "Volume", "list_series", "read_volume"]
