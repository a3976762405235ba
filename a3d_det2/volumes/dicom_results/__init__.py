"""Lesions in DICOM, for archives and their viewers; needs highdicom.

source        the images that all refer to, and what is copied from them
converted_ct  a volume as DICOM images, where there are none to refer to
segmentation  a Segmentation, a segment for each lesion
report        a Comprehensive 3D SR by template TID 1500, measurements for each lesion
writing       all of it into a folder
"""

from .source import source_problem
from .writing import Algorithm, DicomResults

__all__ = ["Algorithm", "DicomResults", "source_problem"]
