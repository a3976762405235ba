"""Reader, samples and phantom: no Detectron2 needed. Its mapper and augmentation are imported by the package's own
``__init__``."""

from .deeplesion import load_deeplesion, register_deeplesion
from .slices import load_slice_stack, window_hu

__all__ = ["load_deeplesion", "load_slice_stack", "register_deeplesion", "window_hu"]
