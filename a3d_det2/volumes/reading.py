"""A path -> the CT volumes in it, whatever the format."""

import os

from .dicom import list_series, read_dicom
from .nifti import read_nifti
from .volume import UnreadableVolume, Volume


def read_volume(path: str, series: str | None = None) -> Volume:
    """Read a CT volume: .nii, .nii.gz, a DICOM file or a folder of DICOM files at any depth.

    Args:
        path: of the file or folder.
        series: of several DICOM series, the one whose UID or description this is; None is the only one that can be
            used.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        UnreadableVolume: if there is no CT volume that can be used, or there are several and ``series`` names none.
        ImportError: if pydicom or nibabel is not installed.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.endswith((".nii", ".nii.gz")):
        return read_nifti(path)
    found = list_series(path)
    usable = [one for one in found if not one.problem]
    if series is not None:
        usable = [one for one in found if series in (one.uid, one.description)]
    if len(usable) == 1:
        return read_dicom(usable[0])
    if not found:
        raise UnreadableVolume(f"{path}: expected a CT as DICOM or NIfTI, got no such file")
    lines = "\n  ".join(f"{one.uid or 'no UID'}, {one.name}: {one.problem or 'can be used'}" for one in found)
    wanted = "one series" if series is None else f"one series called {series!r}"
    raise UnreadableVolume(f"{path}: expected {wanted} of CT slices, got {len(usable)} of these:\n  {lines}")
