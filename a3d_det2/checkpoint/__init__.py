"""Weights on disk: ``strict`` is what both engines load and save with, ``detectron2`` its form for Detectron2, and
``formats`` the files of others."""

from importlib import import_module

from .formats import FORMATS, Format, load_torchvision_densenet
from .strict import StrictCheckpointer

__all__ = [
    "FORMATS",
    "BestCheckpointer",
    "Format",
    "LesionCheckpointer",
    "StrictCheckpointer",
    "load_torchvision_densenet",
]


def __getattr__(name: str):
    if name in ("BestCheckpointer", "LesionCheckpointer"):  # of Detectron2
        return getattr(import_module("a3d_det2"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
