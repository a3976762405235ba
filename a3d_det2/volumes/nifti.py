"""NIfTI files, whatever way they are stored."""

import os
import re

import numpy as np

from .volume import UnreadableVolume, Volume, oblique_problem, size_problem, to_int16

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
OURS = ("L", "P", "I")  # columns to the left, rows to the back (posterior), slices to the feet (inferior)


def nifti_name(path: str) -> str:
    """The name of a file without its extension."""
    return re.sub(r"\.nii(\.gz)?$", "", os.path.basename(path), flags=re.IGNORECASE)


class NiftiFile:
    """A .nii or .nii.gz file, of which only the header is read before :meth:`read`.

    Attributes:
        path: of the file.
        shape: (columns, rows, slices), as they will be.
        affine: (4, 4), from the indices (column, row, slice) to patient coordinates, LPS, mm.

    Raises:
        FileNotFoundError: if there is no such file.
        UnreadableVolume: if it is damaged, not three-dimensional, has no geometry or slices that cannot be used.
    """

    def __init__(self, path: str):
        import nibabel
        from nibabel import orientations

        self.path = path
        try:
            image = nibabel.load(path)
            self._data, stored, header = image.dataobj, np.array(image.affine, dtype=np.float64), image.header
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
            raise UnreadableVolume(
                f"{path}: expected a geometry, got qform_code and sform_code 0: nobody knows what is up"
            )
        if not np.isfinite(stored).all() or abs(np.linalg.det(stored[:3, :3])) < 1e-9:
            raise UnreadableVolume(f"{path}: expected an affine map of voxels to mm, got {stored.tolist()}")
        self._stored_shape = shape
        self._to_ours = orientations.ornt_transform(
            orientations.io_orientation(stored), orientations.axcodes2ornt(OURS)
        )
        # Row a: our axis that the file's axis a is, and whether it runs our way.
        self.stored_axes = tuple(int(axis) for axis in self._to_ours[:, 0])
        self.stored_flips = tuple(bool(sign < 0) for sign in self._to_ours[:, 1])
        self.shape = tuple(shape[self.stored_axes.index(axis)] for axis in range(3))
        self.affine = RAS_TO_LPS @ stored @ orientations.inv_ornt_aff(self._to_ours, shape)
        normal = np.cross(self.affine[:3, 0], self.affine[:3, 1])
        self._normal = normal / np.linalg.norm(normal)
        angle = float(np.degrees(np.arccos(min(abs(self._normal[2]), 1))))
        units = self.affine[:3, :2] / np.linalg.norm(self.affine[:3, :2], axis=0)
        if problem := oblique_problem(angle) or size_problem(*self.shape[1::-1], self.shape[2], self.spacing[:2]):
            raise UnreadableVolume(f"{path}: {problem}")
        if abs(units[:, 0] @ units[:, 1]) > 0.01:
            raise UnreadableVolume(f"{path}: expected columns perpendicular to rows, got a sheared image")
        if (unit := header.get_xyzt_units()[0]) not in ("mm", "unknown"):
            raise UnreadableVolume(f"{path}: expected lengths in mm, got {unit}")
        if header.get_data_dtype().kind not in "iuf":
            raise UnreadableVolume(f"{path}: expected HU, got values of the type {header.get_data_dtype()}")

    @property
    def name(self) -> str:
        return nifti_name(self.path)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm between columns, rows and slices."""
        x, y = np.linalg.norm(self.affine[:3, :2], axis=0)
        return float(x), float(y), abs(float(self.affine[:3, 2] @ self._normal))

    def read(self) -> Volume:
        """
        Raises:
            UnreadableVolume: if it is cut off, or has values that are no HU.
        """
        try:
            stored = self._data.get_unscaled().reshape(self._stored_shape)
            hu = np.empty(self.shape[::-1], dtype=np.int16)
            # The same memory by the axes of the file; slab by slab, as nibabel scales all to floats of 64 bits.
            as_stored = hu.transpose(2, 1, 0).transpose(self.stored_axes)
            as_stored = as_stored[tuple(slice(None, None, -1 if flip else 1) for flip in self.stored_flips)]
            for k in range(stored.shape[2]):
                as_stored[..., k] = to_int16(stored[..., k] * self._data.slope + self._data.inter)
        except UnreadableVolume as error:
            raise UnreadableVolume(f"{self.path}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # a file that is cut off, or another compression
            raise UnreadableVolume(
                f"{self.path}: expected a complete NIfTI file, got a damaged one ({error})"
            ) from error
        if hu.min() >= 0:
            raise UnreadableVolume(
                f"{self.path}: expected HU, of which fat and air have less than 0, got {hu.min()} to {hu.max()}"
            )
        return self.volume(hu)

    def volume(self, hu: np.ndarray) -> Volume:
        """The volume with (D, H, W) int16 in DeepLesion's orientation, where this file lies."""
        step = self.affine[:3, 2]
        along = self.spacing[2]
        in_plane = step - (step @ self._normal) * self._normal
        units = self.affine[:3, :2] / np.linalg.norm(self.affine[:3, :2], axis=0)
        offsets = np.arange(len(hu))[:, None] * (in_plane @ units)
        is_tilted = np.abs(offsets).max() >= 0.01 * max(along, 1)
        return Volume(
            hu,
            self.affine,
            np.arange(len(hu)) * along,
            offsets,
            self.name,
            ("The slices are shifted against each other (tilt).",) if is_tilted else (),
            stored_axes=self.stored_axes,
            stored_flips=self.stored_flips,
            identifiers={"file": os.path.basename(self.path)},
        )
