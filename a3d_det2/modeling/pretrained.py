"""Weights of other models -> ours. Every key is accounted for: placed, known to be of no use here, or an error.

1. torchvision's DenseNet, pretrained on ImageNet: the start of the published models.
2. The models that the authors of the A3D paper published, in the names of mmdetection 1.
3. Detectron2's own 2D models, as its model zoo has them.
"""

import re

import torch
from torch import Tensor, nn

from ..layers import FusionConv
from ..layers.convert import check_stem_weights, grey_kernel
from .densenet import DenseNet3D


def fit_kernels(module: nn.Module, state_dict: dict[str, Tensor], stem_weights: str = "middle") -> dict[str, Tensor]:
    """Give the 2D kernels of a state dict the shape that the fusion convs of ``module`` have them in.

    A kernel for three colours becomes grey where the convolution has one input channel, and those of ``i3d`` are
    inflated. All else, and what fits already, is left as it is.

    Args:
        module: what the state dict shall be loaded into.
        state_dict: in the names of ``module``.
        stem_weights: see :func:`a3d_det2.layers.convert.grey_kernel`.

    Raises:
        ValueError: if ``stem_weights`` is unknown.
    """
    check_stem_weights(stem_weights)
    state_dict = dict(state_dict)
    for name, conv in module.named_modules():
        kernel = state_dict.get(f"{name}.weight")
        if isinstance(conv, FusionConv) and kernel is not None and kernel.dim() == 4:
            if kernel.shape[1] == 3 and conv.in_channels == 1:
                kernel = grey_kernel(kernel, stem_weights)
            state_dict[f"{name}.weight"] = conv.from_2d(kernel)
    return state_dict


# What 2D weights need not have: what fuses slices, and counters that older files lack.
MAY_BE_ABSENT = re.compile(r".*\.fusion_weight$|.*\.squeeze\.|.*\.num_batches_tracked$")


# --- torchvision ------------------------------------------------------------------------------------------------------


def is_torchvision_densenet(state_dict: dict[str, Tensor]) -> bool:
    """Whether the keys are those of a torchvision DenseNet classifier."""
    return "features.conv0.weight" in state_dict


def load_torchvision_densenet(trunk: DenseNet3D, state_dict: dict[str, Tensor], stem_weights: str = "middle") -> None:
    """Load a torchvision DenseNet state dict (such as ``densenet121``) into the trunk, by name.

    Both key styles are understood: ``denselayer1.norm.1.weight`` of the published files and
    ``denselayer1.norm1.weight`` of the module. What lies behind the trunk's last dense block (transition, later blocks,
    final norm, classifier) is left out. Fusion weights, which no 2D network has, keep their initial value.

    Args:
        trunk: a :class:`DenseNet3D` of the same width and depth.
        state_dict: torchvision's.
        stem_weights: "middle" takes the middle of the three input channels of ``conv0`` (the published setup), "sum"
            adds them up, which is exactly the 2D network on a grey image repeated three times.

    Raises:
        ValueError: if ``stem_weights`` is unknown, a key has no place in the trunk, a shape differs, or a parameter
            of the trunk finds no value. The message lists the keys.
    """
    last = len(trunk.out_channels)
    own = trunk.state_dict()
    renamed = {re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key.removeprefix("features.")): key for key in state_dict}
    fitted = fit_kernels(trunk, {name: state_dict[key] for name, key in renamed.items()}, stem_weights)
    placed, problems = {}, []
    for name, value in fitted.items():
        if name in own:
            if value.shape != own[name].shape:
                problems.append(f"{renamed[name]}: expected shape {tuple(own[name].shape)}, got {tuple(value.shape)}")
            placed[name] = value
        elif not _behind_trunk(name, last):
            problems.append(f"{renamed[name]}: no such parameter in the trunk")
    problems += [f"{name}: no value for it" for name in own if name not in placed and not MAY_BE_ABSENT.match(name)]
    if problems:
        raise ValueError("These torchvision DenseNet weights do not fit the trunk:\n  " + "\n  ".join(problems))
    trunk.load_state_dict({**own, **placed})


def _behind_trunk(name: str, last_block: int) -> bool:
    if name.startswith(("classifier.", "norm5.")):
        return True
    part = re.match(r"(denseblock|transition)(\d+)\.", name)
    return part is not None and int(part[2]) >= last_block + (part[1] == "denseblock")


# --- the published models ---------------------------------------------------------------------------------------------

_PUBLISHED_NAMES = [
    (r"backbone\.(.+)\.adaptive_align_weights", r"backbone.bottom_up.trunk.\1.fusion_weight"),
    (r"backbone\.((?:conv|norm)0|denseblock\d+|transition\d+)\.(.+)", r"backbone.bottom_up.trunk.\1.\2"),
    (r"rpn_head\.rpn_conv\.(.+)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn_head\.rpn_cls\.(.+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn_head\.rpn_reg\.(.+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"bbox_head\.fc_cls\.(.+)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"bbox_head\.fc_reg\.(.+)", r"roi_heads.box_predictor.bbox_pred.\1"),
    (r"mask_head\.upsample\.(.+)", r"roi_heads.mask_head.deconv.\1"),
    (r"mask_head\.conv_logits\.(.+)", r"roi_heads.mask_head.predictor.\1"),
]


def is_published(state_dict: dict[str, Tensor]) -> bool:
    """Whether the keys are those of the models that the authors of the paper published."""
    return any(re.match(r"(module\.)?backbone\.reductionz\d+\.", key) for key in state_dict)


def convert_published(
    state_dict: dict[str, Tensor], anchor_sizes: int = 6, anchor_ratios: int = 3
) -> dict[str, Tensor]:
    """The state dict of a published model in the names of a :class:`LesionRCNN` with the fused neck and the mask head.

    Beside the names, four things differ: kernels may have a D of 1; mmdetection counts anchors ratio by ratio,
    Detectron2 size by size; the background is the first class there and the last here; and there it has boxes and
    masks, which are dropped.

    Args:
        state_dict: theirs.
        anchor_sizes, anchor_ratios: how many of each the RPN has at every position.

    Raises:
        ValueError: if a key is not known, the message lists all such keys; or the RPN has other anchors.
    """
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    converted, unknown = {}, []
    for key, value in state_dict.items():
        name = _published_name(key, state_dict)
        if name is None:
            unknown.append(key)
        else:
            converted[name] = _published_value(name, value, anchor_sizes, anchor_ratios)
    if unknown:
        raise ValueError(
            "These keys of a published model have no place in a LesionRCNN with the fused neck and the mask head:\n  "
            + "\n  ".join(unknown)
        )
    return converted


def _published_name(key: str, keys) -> str | None:
    for pattern, name in _PUBLISHED_NAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    # What is numbered, in the order of the numbers: levels finest first, layers from the input on.
    for pattern, name in (
        (r"backbone\.reductionz(\d+)\.reduction_z_conv\.(.+)", "backbone.bottom_up.squeeze.dense{1}.{2}"),
        (r"backbone\.lateral(\d+)\.(.+)", "backbone.neck.laterals.{0}.{2}"),
        (r"bbox_head\.shared_fcs\.(\d+)\.(.+)", "roi_heads.box_head.fc{1}.{2}"),
        (r"mask_head\.convs\.(\d+)\.conv\.(.+)", "roi_heads.mask_head.mask_fcn{1}.{2}"),
    ):
        if match := re.fullmatch(pattern, key):
            numbers = sorted({int(other[1]) for k in keys if (other := re.fullmatch(pattern, k))})
            index = numbers.index(int(match[1]))
            return name.format(index, index + 1, match[2])
    return None


def _published_value(name: str, value: Tensor, anchor_sizes: int, anchor_ratios: int) -> Tensor:
    if ".trunk." in name and value.dim() == 5 and value.shape[2] == 1:
        return value.squeeze(2)
    if ".rpn_head.objectness_logits." in name or ".rpn_head.anchor_deltas." in name:
        if len(value) % (anchor_ratios * anchor_sizes):
            raise ValueError(
                f"{name}: expected outputs for {anchor_sizes} sizes x {anchor_ratios} ratios of anchors. "
                f"Got shape {tuple(value.shape)}!"
            )
        by_anchor = value.unflatten(0, (anchor_ratios, anchor_sizes, -1))
        return by_anchor.transpose(0, 1).flatten(0, 2)
    if ".cls_score." in name:
        return torch.cat([value[1:], value[:1]])
    if ".bbox_pred." in name:
        return value[4:]
    if ".mask_head.predictor." in name:
        return value[1:]
    return value


# --- Detectron2's 2D models -------------------------------------------------------------------------------------------

_TRUNK, _TRUNK_2D = "backbone.bottom_up.trunk.", "backbone.bottom_up."


def is_detectron2_2d(state_dict: dict[str, Tensor]) -> bool:
    """Whether the keys are those of a Detectron2 model with ``build_resnet_fpn_backbone``."""
    return f"{_TRUNK_2D}stem.conv1.weight" in state_dict


def convert_detectron2_2d(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a Detectron2 model with ``build_resnet_fpn_backbone`` in the names of the same model with
    ``build_a3d_resnet_fpn_backbone``.
    """
    return {
        _TRUNK + key.removeprefix(_TRUNK_2D) if key.startswith(_TRUNK_2D) else key: value
        for key, value in state_dict.items()
    }
