from detectron2.layers import ROIAlign
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from .boxes import PublishedBox2BoxTransform, clip_to_pixels


class UnshiftedROIAlign(ROIAlign):
    """RoIAlign that is not shifted by half a pixel and takes regions of any size. torchvision's unshifted one makes
    those of less than one cell as large as a cell; its shifted one does not, and is shifted back here."""

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """(N, C, H, W) and (R, 5), the number of the image and XYXY -> (R, C, *output_size)"""
        shift = rois.new_tensor([0, 1, 1, 1, 1]) * (0.5 / self.spatial_scale)
        return super().forward(features, rois + shift)


class PublishedOutputLayers(FastRCNNOutputLayers):
    """Detectron2's output of the box head, with boxes decoded and clipped as published."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(cfg, input_shape)
        weights = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        return {**arguments, "box2box_transform": PublishedBox2BoxTransform(weights=weights)}

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """See ``FastRCNNOutputLayers.predict_boxes``."""
        boxes = super().predict_boxes(predictions, proposals)
        return [
            clip_to_pixels(of_image.unflatten(1, (-1, 4)), instances.image_size).flatten(1)
            for of_image, instances in zip(boxes, proposals, strict=True)
        ]


@ROI_HEADS_REGISTRY.register()
class PublishedROIHeads(StandardROIHeads):
    """Detectron2's heads with regions of any size, boxes that keep a pixel of the image, and the published
    initialisation of the box head's first layer, 1.36 times as wide in the published setup. POOLER_TYPE has no
    effect."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        _pool_as_published(parts["box_pooler"])
        nn.init.xavier_uniform_(parts["box_head"].fcs[0].weight)
        return {**parts, "box_predictor": PublishedOutputLayers(cfg, parts["box_head"].output_shape)}

    @classmethod
    def _init_mask_head(cls, cfg, input_shape) -> dict:
        parts = super()._init_mask_head(cfg, input_shape)
        if parts:
            _pool_as_published(parts["mask_pooler"])
        return parts


def _pool_as_published(pooler: ROIPooler) -> None:
    for level, align in enumerate(pooler.level_poolers):
        how = align.output_size, align.spatial_scale, align.sampling_ratio
        pooler.level_poolers[level] = UnshiftedROIAlign(*how, aligned=True)
