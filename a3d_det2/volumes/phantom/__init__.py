"""Synthetic CTs of a whole body with known lesions, rendered slice by slice.

body        the anatomy
blobs       lesions and vessels
volume      both together, and how a slice is drawn
invention   volumes at random
ground_truth        where the lesions are
nifti, dicom, deeplesion    the same as files
sets        a volume with its truth, in any format
"""

from .deeplesion import VolumeOptions, write_png, write_training_series
from .dicom import write_dicom
from .ground_truth import truth
from .invention import random_volume
from .nifti import write_labels, write_nifti
from .volume import PhantomVolume, labels, render

__all__ = [
    "PhantomVolume",
    "VolumeOptions",
    "labels",
    "random_volume",
    "render",
    "truth",
    "write_dicom",
    "write_labels",
    "write_nifti",
    "write_png",
    "write_training_series",
]
