"""The label map of a volume as a DICOM Segmentation."""

from collections.abc import Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence, PlanePositionSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.uid import UID
from pydicom.sr.codedict import codes

from ..lesion import Lesion
from .equipment import Algorithm, equipment
from .source import SourceImages

COLOURS = "orange deepskyblue limegreen gold orchid tomato turquoise".split()  # of segments, one after the other


def build_segmentation(
    images: SourceImages,
    labels: np.ndarray,
    lesions: Sequence[Lesion],
    tracking: Sequence[str],
    algorithm: Algorithm,
    series_number: int,
) -> Segmentation:
    """Make a Segmentation of type BINARY, not compressed, in the geometry of the source images.

    Args:
        images: that it refers to.
        labels: (D, rows, columns) uint16, as they are stored: the number of the lesion that each pixel is of, 0 for
            none.
        lesions: numbered from 1 on without a gap. Each gets the segment of its number, and one that lies under others
            altogether no frame.
        tracking: UID of each lesion.
        algorithm: that found them.
        series_number: of the new series.
    """
    identification = AlgorithmIdentificationSequence(
        algorithm.name, codes.cid7162.ArtificialIntelligence, algorithm.version, parameters=dict(algorithm.parameters)
    )
    segments = [
        SegmentDescription(
            lesion.number,
            tracking_id(lesion),
            codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.Lesion,
            SegmentAlgorithmTypeValues.AUTOMATIC,
            identification,
            tracking_uid=uid,
            tracking_id=tracking_id(lesion),
            display_color=CIELabColor.from_string(COLOURS[(lesion.number - 1) % len(COLOURS)]),
        )
        for lesion, uid in zip(lesions, tracking, strict=True)
    ]
    for segment, lesion in zip(segments, lesions, strict=True):
        segment.SegmentDescription = f"Score {lesion.score:.3f}"
    positions = None
    if images.frames is not None:  # the multi-frame image may have frames that are no slice of the volume
        positions = [PlanePositionSequence("PATIENT", one.ImagePositionPatient) for one in images.slices]
    return Segmentation(
        source_images=images.of_segmentation(),
        pixel_array=labels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=UID(),
        series_number=series_number,
        sop_instance_uid=UID(),
        instance_number=1,
        content_label="LESIONS",
        content_description="Found automatically, for research use only",
        series_description="Lesions (segmentation)",
        plane_positions=positions,
        **equipment(algorithm),
    )


def tracking_id(lesion: Lesion) -> str:
    """What a lesion is called in all results of a volume."""
    return f"Lesion {lesion.number}"
