"""The detector as it was published, where its framework, mmdetection 1, differs from Detectron2.

There a box names its first and last pixel and is x2 - x1 + 1 wide; Detectron2's boxes end where the last pixel does. So
within these classes a box ends one pixel further than it says outside, see :class:`.PublishedRCNN`. Needs Detectron2.
"""

from .anchor_generator import PublishedAnchorGenerator
from .mask_head import PublishedMaskHead
from .rcnn import PublishedRCNN
from .roi_heads import PublishedROIHeads
from .rpn import PublishedRPN

__all__ = ["PublishedAnchorGenerator", "PublishedMaskHead", "PublishedRCNN", "PublishedROIHeads", "PublishedRPN"]
