import torch
from detectron2.config import configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .boxes import PublishedBox2BoxTransform, clip_to_pixels


@PROPOSAL_GENERATOR_REGISTRY.register()
class PublishedRPN(RPN):
    """Detectron2's RPN with the rules of the published one at the border of the image.

    With RPN.BOUNDARY_THRESH from 0 on, anchors that reach further out of the image do not take part in the matching;
    Detectron2 takes them out afterwards, so that they can keep a lesion from its best anchor inside, and drops anchors
    that end with the image. Proposals beyond the border keep a line of pixels.
    """

    @configurable
    def __init__(self, *, anchor_boundary_thresh: float = -1.0, **arguments):
        super().__init__(**arguments)
        self.allowed_border = anchor_boundary_thresh

    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(cfg, input_shape)
        arguments["box2box_transform"] = PublishedBox2BoxTransform(weights=cfg.MODEL.RPN.BBOX_REG_WEIGHTS)
        return arguments

    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See ``RPN.label_and_sample_anchors``."""
        if self.allowed_border < 0:
            return super().label_and_sample_anchors(anchors, gt_instances)
        every, allowed = Boxes.cat(anchors), self.allowed_border
        x1, y1, x2, y2 = every.tensor.unbind(1)
        labels, matched = [], []
        for instances in gt_instances:
            height, width = instances.image_size
            inside = (x1 >= -allowed) & (y1 >= -allowed) & (x2 <= width + allowed) & (y2 <= height + allowed)
            (of_inside,), (boxes,) = super().label_and_sample_anchors([every[inside]], [instances])
            labels.append(of_inside.new_full(inside.shape, -1))
            matched.append(torch.zeros_like(every.tensor))
            labels[-1][inside], matched[-1][inside] = of_inside, boxes
        return labels, matched

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """See ``RPN.predict_proposals``."""
        proposals = [
            torch.stack([clip_to_pixels(boxes, size) for boxes, size in zip(level, image_sizes, strict=True)])
            for level in self._decode_proposals(anchors, pred_anchor_deltas)
        ]
        return find_top_rpn_proposals(
            proposals,
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )
