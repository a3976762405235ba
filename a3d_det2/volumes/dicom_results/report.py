"""Measurements of lesions as a DICOM structured report."""

from collections.abc import Sequence

import numpy as np
from highdicom.seg import Segmentation
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    CoordinatesForMeasurement,
    DeviceObserverIdentifyingAttributes,
    GraphicTypeValues,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    ReferencedSegment,
    SourceImageForRegion,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from highdicom.uid import UID
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from ..label_map import stored_points
from ..lesion import Lesion
from ..volume import Volume
from .equipment import Algorithm, equipment
from .segmentation import tracking_id
from .source import SourceImages, image_points

# OHIF takes two lengths for its tool of that name by this identifier, and by their meanings letter by letter.
BIDIRECTIONAL = "Cornerstone3DTools@^0.1.0:Bidirectional"
LONG_AXIS = CodedConcept("103339001", "SCT", "Long Axis")
SHORT_AXIS = CodedConcept("103340004", "SCT", "Short Axis")


def build_report(
    volume: Volume,
    images: SourceImages,
    segmentation: Segmentation,
    lesions: Sequence[Lesion],
    tracking: Sequence[str],
    algorithm: Algorithm,
    series_number: int,
) -> Comprehensive3DSR:
    """Make a Comprehensive 3D SR by the template TID 1500 of DICOM PS3.16.

    For each lesion there are two measurement groups with its UID. One has the long and the short axis in mm, each with
    its line on the image where the lesion is largest (TID 1501); the other the volume in mm3 and the score in percent,
    with the segment (TID 1411).

    Args:
        volume: in which the lesions were found.
        images: those of the volume.
        segmentation: of the lesions, see :func:`.build_segmentation`.
        lesions: at least one.
        tracking: UID of each lesion, as in the segmentation.
        algorithm: that found them.
        series_number: of the new series.
    """
    groups = []
    identification = AlgorithmIdentification(
        algorithm.name, algorithm.version, [f"{name}={value}" for name, value in algorithm.parameters.items()]
    )
    for lesion, uid in zip(lesions, tracking, strict=True):
        groups.append(_axes(volume, images, lesion, uid, identification))
        groups.append(_extent(images, segmentation, lesion, uid, identification))
    shown = images.instances([one.largest for one in lesions])
    device = DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[algorithm.name, algorithm.version]),
        name=algorithm.name,
        model_name=algorithm.name,
        manufacturer_name=algorithm.name,
    )
    content = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(codes.DCM.Device, device),
        ),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
        referenced_images=shown,
    )
    return Comprehensive3DSR(
        evidence=[*shown, segmentation],
        content=content,
        series_instance_uid=UID(),
        series_number=series_number,
        sop_instance_uid=UID(),
        instance_number=1,
        is_complete=True,
        is_verified=False,
        series_description="Lesions (measurements), research use only",
        **equipment(algorithm),
    )


def _axes(
    volume: Volume, images: SourceImages, lesion: Lesion, uid: str, identification: AlgorithmIdentification
) -> MeasurementsAndQualitativeEvaluations:
    shown = images.slices[lesion.largest]
    image = SourceImageForRegion(shown.SOPClassUID, shown.SOPInstanceUID, images.frame(lesion.largest))

    def length(name: CodedConcept, millimeters: float, ends: np.ndarray) -> Measurement:
        line = CoordinatesForMeasurement(
            GraphicTypeValues.POLYLINE, image_points(stored_points(volume, ends)), source_image=image
        )
        return Measurement(name, round(float(millimeters), 4), codes.UCUM.Millimeter, referenced_coordinates=[line])

    return MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid, BIDIRECTIONAL),
        finding_type=codes.SCT.Lesion,
        algorithm_id=identification,
        measurements=[
            length(LONG_AXIS, lesion.long_mm, lesion.long_axis),
            length(SHORT_AXIS, lesion.short_mm, lesion.short_axis),
        ],
    )


def _extent(
    images: SourceImages,
    segmentation: Segmentation,
    lesion: Lesion,
    uid: str,
    identification: AlgorithmIdentification,
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid, tracking_id(lesion)),
        referenced_segment=ReferencedSegment(
            segmentation.SOPClassUID,
            segmentation.SOPInstanceUID,
            lesion.number,
            source_series=SourceSeriesForSegmentation(images.slices[0].SeriesInstanceUID),
        ),
        finding_type=codes.SCT.Lesion,
        algorithm_id=identification,
        measurements=[
            Measurement(codes.SCT.Volume, round(float(lesion.volume_mm3), 4), codes.UCUM.CubicMillimeter),
            Measurement(codes.DCM.CertaintyOfFinding, round(100 * float(lesion.score), 4), codes.UCUM.Percent),
        ],
    )
