import torch
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import BitMasks
from torch import Tensor, nn
from torch.nn import functional as F

from ..mask_head import DiceMaskHead


@ROI_MASK_HEAD_REGISTRY.register()
class PublishedMaskHead(DiceMaskHead):
    """:class:`.DiceMaskHead` with soft targets, and a last layer that starts with a standard deviation of 1."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.normal_(self.predictor.weight, std=1.0)

    def targets(self, masks: BitMasks, boxes: Tensor, size: int) -> Tensor:
        """Crop whole pixels and resize them bilinearly: pixels at the outline are between 0 and 1.

        Args:
            masks: R of (H, W).
            boxes: (R, 4) XYXY, which end where their last pixel does.
            size: S.

        Returns:
            (R, S, S) float32.

        Raises:
            ValueError: if the masks are polygons.
        """
        if not isinstance(masks, BitMasks):
            raise ValueError(f"Expected masks as INPUT.MASK_FORMAT 'bitmask' makes them, got {type(masks).__name__}.")
        first, last = boxes[:, :2].long(), (boxes[:, 2:] - 1).long()  # pixels
        last = torch.maximum(first, last)
        crops = [
            mask[y1 : y2 + 1, x1 : x2 + 1]
            for mask, (x1, y1, x2, y2) in zip(masks.tensor, torch.cat([first, last], dim=1).tolist(), strict=True)
        ]
        resized = [F.interpolate(crop[None, None].float(), (size, size), mode="bilinear") for crop in crops]
        return torch.cat(resized)[:, 0]
