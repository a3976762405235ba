"""The trunk in torchvision's own Faster and Mask R-CNN, for machines without Detectron2.

Trunk, squeeze and fused neck are those of the Detectron2 backbones, with the same parameter names.
"""

import logging
from functools import reduce

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from ..layers.thickness import slice_thickness
from .build import build_squeezed_densenet
from .fused_neck import FusedTrunk
from .ignored import near_ignored
from .squeeze import SqueezedTrunk, StackedTrunk

TORCHVISION_HAS = {  # where Detectron2 leaves a choice
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.RPN.SMOOTH_L1_BETA": 0.1111,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.1111,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
}


class PyramidTrunk(nn.Module):
    """torchvision's FPN over all outputs of a :class:`.SqueezedTrunk`; a :class:`.FusedTrunk` has the paper's neck.

    A level has ``out_channels``, and the name of the output.
    """

    def __init__(self, bottom_up: SqueezedTrunk, out_channels: int):
        super().__init__()
        self.bottom_up, self.out_channels, self.out_strides = bottom_up, out_channels, bottom_up.out_strides
        self.size_divisibility = bottom_up.size_divisibility
        self.fpn = FeaturePyramidNetwork(list(bottom_up.out_channels.values()), out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, D, H, W) -> {"dense1": (N, out_channels, H/4, W/4), ...}"""
        return self.fpn(self.bottom_up(x))


class BatchOnly(GeneralizedRCNNTransform):
    """torchvision's image transform without its resizing; detections are given in ``output_sizes``, (height, width) per
    image, or where that is None in the images' own."""

    output_sizes = None

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None):
        return image, target

    def postprocess(self, result, image_shapes, original_image_sizes):
        return super().postprocess(result, image_shapes, self.output_sizes or original_image_sizes)


class LesionRPN(RegionProposalNetwork):
    """torchvision's RPN where a label of -1 says that a lesion shall be neither found nor not found: anchors near it
    are no background, see :func:`.near_ignored`. The box heads leave proposals with this label out by themselves."""

    def assign_targets_to_anchors(self, anchors, targets):
        """See ``RegionProposalNetwork.assign_targets_to_anchors``; a label of -1 leaves an anchor out."""
        lesions = [{"boxes": target["boxes"][target["labels"] > 0]} for target in targets]
        labels, boxes = super().assign_targets_to_anchors(anchors, lesions)
        for label, of_image, target in zip(labels, anchors, targets, strict=True):
            ignored = target["boxes"][target["labels"] < 0]
            if len(ignored):
                ious = self.box_similarity(ignored, of_image)
                label[(label == 0) & near_ignored(ious, self.proposal_matcher.low_threshold)] = -1
        return labels, boxes


class LesionRoIHeads(RoIHeads):
    """torchvision's box and mask heads that say how many of the regions they were trained with are lesions.

    Attributes:
        lesion_share: of the last batch of a training, from 0 to 1.
    """

    lesion_share = float("nan")

    def select_training_samples(self, proposals, targets):
        """See ``RoIHeads.select_training_samples``."""
        selected = super().select_training_samples(proposals, targets)
        self.lesion_share = float((torch.cat(selected[2]) > 0).float().mean())
        return selected


def _as(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """A module as one of a subclass, with the same parameters: torchvision's detectors make their parts themselves."""
    same = kind.__new__(kind)
    same.__dict__.update(module.__dict__)
    return same


class _OfSlices:
    """Makes one of torchvision's detectors take (D, H, W) images, and resize none of them. The arguments are those of
    the detector; the backbone is a :class:`PyramidTrunk` or a :class:`.FusedTrunk`.
    """

    def __init__(self, backbone: nn.Module, *args, image_mean=(0.0,), image_std=(1.0,), **kwargs):
        super().__init__(backbone, *args, **kwargs)
        self.rpn, self.roi_heads = _as(LesionRPN, self.rpn), _as(LesionRoIHeads, self.roi_heads)
        self.transform = BatchOnly(0, 0, image_mean, image_std, size_divisible=backbone.size_divisibility)

    def forward(self, images, targets=None, thickness: Tensor | None = None, output_sizes=None):
        """
        Args:
            images, targets: as torchvision's detectors take them; an image is (D, H, W).
            thickness: (N,) in mm, where the operator needs it.
            output_sizes: see :class:`BatchOnly`.

        Returns:
            as torchvision's detectors, the losses or the detections.
        """
        self.transform.output_sizes = output_sizes
        try:
            with slice_thickness(thickness):
                return super().forward(images, targets)
        finally:
            self.transform.output_sizes = None


class LesionFasterRCNN(_OfSlices, FasterRCNN):
    """torchvision's Faster R-CNN of slices."""


class LesionMaskRCNN(_OfSlices, MaskRCNN):
    """torchvision's Mask R-CNN of slices."""


def build_lesion_rcnn(cfg) -> LesionFasterRCNN | LesionMaskRCNN:
    """
    Raises:
        ValueError: if the config asks for what torchvision does not have; see also :func:`.build_squeezed_densenet`.
    """
    necks = {
        "build_a3d_densenet_fpn_backbone": (SqueezedTrunk, PyramidTrunk),
        "build_a3d_densenet_fused_backbone": (SqueezedTrunk, FusedTrunk),
        "build_densenet_2d_fused_backbone": (StackedTrunk, FusedTrunk),
    }
    choices = {"MODEL.META_ARCHITECTURE": ["LesionRCNN"], "MODEL.BACKBONE.NAME": list(necks)}
    choices |= {"MODEL.ROI_HEADS.NAME": ["StandardROIHeads"], "MODEL.ROI_BOX_HEAD.NAME": ["FastRCNNConvFCHead"]}
    choices |= {"SOLVER.WEIGHT_DECAY_NORM": [cfg.SOLVER.WEIGHT_DECAY]}
    choices |= {"INPUT.RANDOM_FLIP": ["horizontal", "vertical", "none"]}
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        choices |= {
            "SOLVER.CLIP_GRADIENTS.FULL_MODEL": [True],
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ["norm", "full_model"],
        }
    for key in (*choices, *(key for key in TORCHVISION_HAS if cfg.MODEL.MASK_ON or "MASK" not in key)):
        value = reduce(getattr, key.split("."), cfg)
        if key in choices and value not in choices[key]:
            raise ValueError(
                f"{key} is {value!r}: with torchvision there is only {' and '.join(map(str, choices[key]))}."
            )
        if value != TORCHVISION_HAS.get(key, value):
            logging.getLogger(__name__).warning(f"{key} is {value!r}; torchvision has {TORCHVISION_HAS[key]!r}.")
    rpn, roi, box, mask = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    anchors, channels, resolution = cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL.FPN.OUT_CHANNELS, box.POOLER_RESOLUTION
    squeezed, neck = necks[cfg.MODEL.BACKBONE.NAME]
    backbone = neck(build_squeezed_densenet(cfg, cfg.MODEL.FPN.IN_FEATURES, squeezed), channels)
    names = [f"p{stride.bit_length() - 1}" for stride in backbone.out_strides.values()]
    if not names == list(rpn.IN_FEATURES) == list(roi.IN_FEATURES):
        raise ValueError(
            f"With torchvision MODEL.RPN.IN_FEATURES and MODEL.ROI_HEADS.IN_FEATURES are all levels, {names}. "
            f"Got {rpn.IN_FEATURES} and {roi.IN_FEATURES} instead!"
        )
    levels, masks = list(backbone.out_strides), {}
    sizes = anchors.SIZES * len(levels) if len(anchors.SIZES) == 1 else anchors.SIZES
    if cfg.MODEL.MASK_ON:
        masks["mask_roi_pool"] = MultiScaleRoIAlign(levels, mask.POOLER_RESOLUTION, mask.POOLER_SAMPLING_RATIO)
        masks["mask_head"] = MaskRCNNHeads(channels, [mask.CONV_DIM] * mask.NUM_CONV, dilation=1)
        masks["mask_predictor"] = MaskRCNNPredictor(mask.CONV_DIM, mask.CONV_DIM, roi.NUM_CLASSES + 1)
    return (LesionMaskRCNN if masks else LesionFasterRCNN)(
        backbone,
        image_mean=cfg.MODEL.PIXEL_MEAN,
        image_std=cfg.MODEL.PIXEL_STD,
        rpn_anchor_generator=AnchorGenerator(sizes, anchors.ASPECT_RATIOS * len(levels)),
        rpn_pre_nms_top_n_train=rpn.PRE_NMS_TOPK_TRAIN,
        rpn_pre_nms_top_n_test=rpn.PRE_NMS_TOPK_TEST,
        rpn_post_nms_top_n_train=rpn.POST_NMS_TOPK_TRAIN,
        rpn_post_nms_top_n_test=rpn.POST_NMS_TOPK_TEST,
        rpn_batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
        box_roi_pool=MultiScaleRoIAlign(levels, resolution, box.POOLER_SAMPLING_RATIO),
        box_head=FastRCNNConvFCHead((channels, resolution, resolution), [], [box.FC_DIM] * box.NUM_FC),
        box_predictor=FastRCNNPredictor(box.FC_DIM, roi.NUM_CLASSES + 1),
        box_score_thresh=roi.SCORE_THRESH_TEST,
        box_nms_thresh=roi.NMS_THRESH_TEST,
        box_detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        box_batch_size_per_image=roi.BATCH_SIZE_PER_IMAGE,
        **masks,
    )
