"""Whole CT volumes: from files to measured lesions.

    reading     any of the formats, by a path -> volume
    volume      what is read: Hounsfield units, and where each voxel lies in the patient
    dicom, nifti, png_series    the formats
    predictor   every slice through a detector: scale, body and stacks are what it sees -> detections
    linking     detections of neighbouring slices -> lesions
    measurement lesions in mm
    writing     lesions as files: label_map, pictures, viewer
    phantom     synthetic volumes with known lesions, in every format

``LesionPredictor`` builds the detector of a config, with Detectron2 or torchvision. Reading needs pydicom and nibabel:
``pip install 'a3d_det2[volumes]'``.
"""

from importlib import import_module

from .lesion import Detection, Lesion, LesionSlice, Mask
from .linking import LinkingRule, link_detections
from .reading import list_volumes, read_volume
from .volume import UnreadableVolume, Volume

__all__ = [
    "Detection",
    "Lesion",
    "LesionPredictor",
    "LesionSlice",
    "LinkingRule",
    "Mask",
    "UnreadableVolume",
    "Volume",
    "VolumePredictor",
    "link_detections",
    "list_volumes",
    "read_volume",
    "write_results",
]
_ELSEWHERE = {  # torch, or matplotlib and a browser's page, are loaded by those who use them
    "LesionPredictor": "..engine.predictor",
    "VolumePredictor": ".predictor",
    "write_results": ".writing",
}


def __getattr__(name: str):
    if name in _ELSEWHERE:
        return getattr(import_module(_ELSEWHERE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
