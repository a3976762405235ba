import torch
from detectron2.layers import cat
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor


@ROI_MASK_HEAD_REGISTRY.register()
class DiceMaskHead(MaskRCNNConvUpsampleHead):
    """Mask R-CNN's mask head with the Dice loss instead of the cross-entropy, as in the published setup (Sec. 2.3).

    Config and layers are those of ``MaskRCNNConvUpsampleHead``.
    """

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """
        Args:
            x: (R, C, S, S), the features of all regions.
            instances: per image; in training foreground proposals with "proposal_boxes", "gt_classes" and "gt_masks".

        Returns:
            {"loss_mask": scalar} in training, otherwise the instances with "pred_masks".
        """
        if not self.training:
            return super().forward(x, instances)
        logits = self.layers(x)  # (R, classes or 1, 2 S, 2 S)
        with torch.no_grad():
            targets = [
                self.targets(i.gt_masks, i.proposal_boxes.tensor, logits.shape[-1]).to(logits.device)
                for i in instances
                if len(i)
            ]
        if not targets:
            return {"loss_mask": logits.sum() * 0}
        if logits.shape[1] == 1:
            logits = logits[:, 0]
        else:
            classes = cat([i.gt_classes for i in instances])
            logits = logits[torch.arange(len(classes), device=logits.device), classes]
        loss = dice_loss(logits.float().sigmoid(), cat(targets).float())
        return {"loss_mask": loss * self.loss_weight}

    def targets(self, masks: BitMasks | PolygonMasks, boxes: Tensor, size: int) -> Tensor:
        """What the predicted masks of regions are compared with.

        Args:
            masks: of the lesion in each region.
            boxes: (R, 4) XYXY, the regions.
            size: S, height and width of a predicted mask.

        Returns:
            (R, S, S)
        """
        return masks.crop_and_resize(boxes, size)


def dice_loss(probabilities: Tensor, targets: Tensor, smooth: float = 0.01) -> Tensor:
    """1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth) per mask, and the mean of that over the masks.

    Args:
        probabilities, targets: (R, H, W) in [0, 1], R > 0.
        smooth: keeps the loss of an empty mask defined.

    Returns:
        scalar.
    """
    overlap = (probabilities * targets).sum((1, 2))
    size = probabilities.sum((1, 2)) + targets.sum((1, 2))
    return (1 - (2 * overlap + smooth) / (size + smooth)).mean()
