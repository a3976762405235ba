"""Importing this module registers with Detectron2 what the package's docstring lists."""

from .data.registration import register_all_deeplesion
from .modeling import backbone, lesion_rpn, mask_head, meta_arch, published

__all__ = ["backbone", "lesion_rpn", "mask_head", "meta_arch", "published", "register_all_deeplesion"]

register_all_deeplesion()
