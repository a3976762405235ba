"""Importing this module registers with Detectron2 what the package's docstring lists."""

from .data.registration import register_all_deeplesion
from .modeling import anchor_generator, backbone, mask_head, meta_arch

__all__ = ["anchor_generator", "backbone", "mask_head", "meta_arch", "register_all_deeplesion"]

register_all_deeplesion()
