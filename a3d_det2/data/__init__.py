"""Slices, samples, datasets and the phantom; ``preparation`` checks and prepares a DeepLesion that was downloaded.

``registration``, ``dataset_mapper``, ``augmentation`` and ``loaders`` need Detectron2.
"""

from .deeplesion import load_deeplesion
from .slices import load_slice_stack, window_hu

__all__ = ["load_deeplesion", "load_slice_stack", "register_deeplesion", "window_hu"]


def __getattr__(name: str):
    if name == "register_deeplesion":
        from .registration import register_deeplesion

        return register_deeplesion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
