"""Anchors as in the published models, whose framework placed them otherwise than Detectron2 does."""

import math

import torch
from detectron2.config import configurable
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class PublishedAnchorGenerator(DefaultAnchorGenerator):
    """Anchors around the first pixel of each cell, with edges on whole pixels, as mmdetection 1 has them.

    There a box names its first and last pixel. The edges of an anchor of width w are round(-(w - 1) / 2) and
    round((w - 1) / 2), halves to the even number, so that sizes of 16, 24, 32, 48, 96 and 192 have 17, 25, 33, 49, 97
    and 193 pixels. Detectron2's boxes end where the last pixel does, one further.

    Args:
        sizes, aspect_ratios, strides: as for ``DefaultAnchorGenerator``. ANCHOR_GENERATOR.OFFSET has no effect.
    """

    @configurable
    def __init__(self, *, sizes, aspect_ratios, strides):
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=0.0)

    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(cfg, input_shape)
        del arguments["offset"]
        return arguments

    def generate_cell_anchors(self, sizes=(32, 64, 128, 256, 512), aspect_ratios=(0.5, 1, 2)) -> Tensor:
        """The anchors of the first cell, (sizes * ratios, 4) XYXY, counted size by size."""
        reach = [
            ((size / math.sqrt(ratio) - 1) / 2, (size * math.sqrt(ratio) - 1) / 2)
            for size in sizes
            for ratio in aspect_ratios
        ]
        reach = torch.tensor(reach, dtype=torch.float64).round()  # halves to the even number
        return torch.cat([-reach, reach + 1], dim=1).float()
