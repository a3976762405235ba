"""NIfTI files, whatever way they are stored."""

import os

import numpy as np

from .volume import UnreadableVolume, Volume, size_problem, to_int16

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_nifti(path: str) -> Volume:
    """Read a .nii or .nii.gz file.

    Raises:
        FileNotFoundError: if there is no such file.
        UnreadableVolume: if it is damaged, not three-dimensional, has no geometry or values that are no HU.
    """
    import nibabel
    from nibabel import orientations

    try:
        image = nibabel.load(path)
        data, affine, header = image.dataobj, np.array(image.affine, dtype=np.float64), image.header
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
    except FileNotFoundError:
        raise
    except Exception as error:  # nibabel says nowhere what it raises for a damaged header
        raise UnreadableVolume(f"{path}: expected a NIfTI file, got an unreadable one ({error})") from error
    if len(shape) != 3:
        raise UnreadableVolume(f"{path}: expected a volume of three dimensions, got {image.shape}")
    if header["qform_code"] == 0 and header["sform_code"] == 0:
        raise UnreadableVolume(f"{path}: expected a geometry, got qform_code and sform_code 0: nobody knows what is up")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UnreadableVolume(f"{path}: expected an affine map of voxels to mm, got {affine.tolist()}")
    try:
        values = np.asanyarray(data).reshape(shape)
        hu = to_int16(values)
    except UnreadableVolume as error:
        raise UnreadableVolume(f"{path}: {error}") from error
    except Exception as error:  # a file that is cut off, or another compression
        raise UnreadableVolume(f"{path}: expected a complete NIfTI file, got a damaged one ({error})") from error
    # Columns to the left, rows to the back (posterior), slices to the feet (inferior).
    to_ours = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt("LPI"))
    hu = orientations.apply_orientation(hu, to_ours)
    affine = RAS_TO_LPS @ affine @ orientations.inv_ornt_aff(to_ours, shape)
    depth = hu.shape[2]
    if problem := size_problem(hu.shape[1], hu.shape[0], depth):
        raise UnreadableVolume(f"{path}: {problem}")
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    step = affine[:3, 2]
    along = abs(float(step @ normal))
    in_plane = step - (step @ normal) * normal
    units = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    offsets = np.arange(depth)[:, None] * (in_plane @ units)
    notes = (
        [] if np.abs(offsets).max() < 0.01 * max(along, 1) else ["The slices are shifted against each other (tilt)."]
    )
    name = os.path.basename(path).removesuffix(".gz").removesuffix(".nii")
    return Volume(
        np.ascontiguousarray(hu.transpose(2, 1, 0)), affine, np.arange(depth) * along, offsets, name, tuple(notes)
    )
