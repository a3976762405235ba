"""Detectron2's region proposal network that leaves ignored lesions out of its loss."""

from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from .ignored import near_ignored


@PROPOSAL_GENERATOR_REGISTRY.register()
class LesionRPN(RPN):
    """RPN where ``gt_classes`` of -1 says that a lesion shall be neither found nor not found (``DATASETS.MINED``).

    An anchor that would not be background if the lesion were annotated, see :func:`near_ignored`, is left out, unless
    it is one of a lesion that is not ignored. It is left out of those that were drawn for the loss, so that these are a
    few less. Without such lesions it is RPN. Detectron2's box heads leave proposals of class -1 out by themselves.
    """

    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See ``RPN.label_and_sample_anchors``; a label of -1 leaves an anchor out."""
        ignored = [x.gt_boxes[x.gt_classes < 0] for x in gt_instances]
        if not any(map(len, ignored)):
            return super().label_and_sample_anchors(anchors, gt_instances)
        lesions = [x[x.gt_classes >= 0] for x in gt_instances]
        labels, boxes = super().label_and_sample_anchors(anchors, lesions)
        every, least = Boxes.cat(anchors), self.anchor_matcher.thresholds[1]
        for label, of_image in zip(labels, ignored, strict=True):
            if len(of_image):
                label[(label == 0) & near_ignored(pairwise_iou(of_image, every), least)] = -1
        return labels, boxes
