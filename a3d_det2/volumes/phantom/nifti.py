"""Phantom volumes as NIfTI, stored in any of the ways that real ones are; needs nibabel."""

from collections.abc import Callable

import numpy as np

from .volume import PhantomVolume, labels, render

OFFSET = 1024  # HU, of stored numbers with a slope


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
        hu = np.rint(render(volume, k))  # as in every other format
        return np.rint((hu + OFFSET) / slope) if slope else hu

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
        image.header.set_slope_inter(slope, -OFFSET)
    nibabel.save(image, path)
