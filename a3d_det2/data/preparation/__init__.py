"""Checking a DeepLesion that was downloaded, and making it ready for training. In reading order:

report          the kinds of findings, and the report that puts them together
annotations     what is wrong with DL_info.csv
slices          what is wrong with the slices of one series
archives        zip files and folders -> Images_png/SERIES/NNN.png
series          one series verified, packed and given weak masks
journal         what is done, so that a run that was killed can go on
command         all of it, as datasets/prepare_deeplesion.py or a3d-prepare
"""

from .annotations import OFFICIAL_COUNTS, Annotations, check_annotations
from .journal import Journal
from .report import KINDS, Finding, Report
from .series import Job, make_jobs, prepare_series
from .slices import SeriesAnnotations, group_by_series, inspect_series

__all__ = [
    "KINDS",
    "OFFICIAL_COUNTS",
    "Annotations",
    "Finding",
    "Job",
    "Journal",
    "Report",
    "SeriesAnnotations",
    "check_annotations",
    "group_by_series",
    "inspect_series",
    "make_jobs",
    "prepare_series",
]
