"""Lesions in DICOM, as files.

lesions_seg.dcm   the Segmentation
lesions_sr.dcm    the structured report
ct/               the volume, if it was no DICOM that can be referred to
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom.uid import UID

from ..label_map import stored_slices
from ..lesion import Lesion
from ..volume import UnreadableVolume, Volume
from .converted_ct import mint_origin, write_converted_ct
from .equipment import Algorithm
from .report import build_report
from .segmentation import build_segmentation
from .source import source_images, source_problem

CT_SERIES, SEGMENTATION_SERIES, REPORT_SERIES = 9000, 9001, 9002  # numbers, behind those of the scanner


@dataclass(frozen=True)
class DicomResults:
    """Writes lesions in DICOM.

    Args:
        algorithm: that found them.
        mint_uids: whether a volume that results cannot refer to is written as DICOM, with new UIDs.
        pseudonymous: whether all of patient and study but UIDs is left out.
        min_score: lesions with lower scores are left out.
    """

    algorithm: Algorithm
    mint_uids: bool = False
    pseudonymous: bool = False
    min_score: float = 0.0

    def check(self, volume: Volume) -> None:
        """
        Raises:
            UnreadableVolume: if results cannot refer to the volume, and it is not to be written as DICOM.
        """
        if not self.mint_uids and (problem := source_problem(volume)):
            raise UnreadableVolume(f"{problem}; mint_uids (--mint-uids) writes the CT as DICOM with new UIDs")

    def write(self, folder: str, volume: Volume, lesions: Sequence[Lesion], labels: np.ndarray) -> None:
        """Write what there is to write of a volume; without a lesion neither object, as neither can be empty.

        Args:
            folder: to make and write into, if there is anything to write.
            volume, lesions: see :class:`.VolumePredictor`.
            labels: (D, H, W), see :func:`.draw_labels`.

        Raises:
            UnreadableVolume: see :meth:`check`.
            OSError: if the folder is there already, or something cannot be written.
        """
        self.check(volume)
        is_minted = self.mint_uids and bool(source_problem(volume))
        volume = mint_origin(volume) if is_minted else volume
        lesions = [lesion for lesion in lesions if lesion.score >= self.min_score]
        if not (lesions or is_minted):
            return
        os.makedirs(folder)
        images = source_images(volume, self.pseudonymous)
        if is_minted:
            write_converted_ct(os.path.join(folder, "ct"), volume, images, self.algorithm, CT_SERIES)
        if not lesions:
            return
        labels = np.where(labels <= len(lesions), labels, 0).astype(np.uint16)
        tracking = [UID() for _ in lesions]
        segmentation = build_segmentation(
            images, stored_slices(volume, labels), lesions, tracking, self.algorithm, SEGMENTATION_SERIES
        )
        report = build_report(volume, images, segmentation, lesions, tracking, self.algorithm, REPORT_SERIES)
        for name, dataset in (("lesions_seg.dcm", segmentation), ("lesions_sr.dcm", report)):
            dataset.save_as(os.path.join(folder, name), enforce_file_format=True)
