"""A LesionRCNN over any backbone of slices, boxes only, with the settings of the YAML configs.

Two things differ: Detectron2's loop for LazyConfigs clips no gradients, and the norm is DenseNet3D's own, BN, where the
YAML configs have SyncBN; with several GPUs pass ``norm="SyncBN"`` to densenet_fpn.
"""

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, StandardROIHeads

from a3d_det2 import LesionRCNN
from a3d_det2.modeling import DenseNet3D
from a3d_det2.modeling.backbone import SliceBackbone


def lesion_rcnn(backbone, anchor_sizes, num_classes: int = 1, fc_dim: int = 2048, num_fc: int = 2):
    """
    Args:
        backbone: a LazyCall of a backbone over slices.
        anchor_sizes: sides in px of the anchors on each of its maps, finest first.
        num_classes: of lesions.
        fc_dim, num_fc: width and number of the layers of the box head.

    Returns:
        a LazyCall of a LesionRCNN on all maps of the backbone.
    """
    with torch.device("meta"):
        shapes = instantiate(backbone).output_shape()
    names, strides = list(shapes), [shape.stride for shape in shapes.values()]
    (channels,) = {shape.channels for shape in shapes.values()}
    return L(LesionRCNN)(
        backbone=backbone,
        proposal_generator=L(RPN)(
            in_features=names,
            head=L(StandardRPNHead)(in_channels=channels, num_anchors=3 * len(anchor_sizes[0])),
            anchor_generator=L(DefaultAnchorGenerator)(
                sizes=anchor_sizes,
                aspect_ratios=[0.5, 1.0, 2.0],
                strides=strides,
                offset=0.5,
            ),
            anchor_matcher=L(Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
            box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
            batch_size_per_image=32,
            positive_fraction=0.5,
            pre_nms_topk=(12000, 6000),
            post_nms_topk=(2000, 300),
            nms_thresh=0.7,
            smooth_l1_beta=0.1111,
        ),
        roi_heads=L(StandardROIHeads)(
            num_classes=num_classes,
            batch_size_per_image=64,
            positive_fraction=0.25,
            proposal_matcher=L(Matcher)(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False),
            box_in_features=names,
            box_pooler=L(ROIPooler)(
                output_size=7, scales=[1 / stride for stride in strides], sampling_ratio=2, pooler_type="ROIAlign"
            ),
            box_head=L(FastRCNNConvFCHead)(
                input_shape=L(ShapeSpec)(channels=channels, height=7, width=7),
                conv_dims=[],
                fc_dims=[fc_dim] * num_fc,
            ),
            box_predictor=L(FastRCNNOutputLayers)(
                input_shape=L(ShapeSpec)(channels=fc_dim),
                test_score_thresh=0.00005,  # FROC needs the weak detections as well
                test_topk_per_image=50,
                smooth_l1_beta=1.0,
                box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
                num_classes="${..num_classes}",
            ),
        ),
        pixel_mean=[0.0],
        pixel_std=[1.0],
    )


def densenet_fpn(op: str, num_slices: int, out_channels: int = 256, **trunk):
    """A LazyCall of Detectron2's FPN over the DenseNet trunk; ``trunk`` are further arguments of DenseNet3D."""
    return L(FPN)(
        bottom_up=L(SliceBackbone)(trunk=L(DenseNet3D)(op=op, num_slices=num_slices, **trunk)),
        in_features=[f"dense{i + 1}" for i in range(len(trunk.get("block_config", (6, 12, 24))))],
        out_channels=out_channels,
    )
