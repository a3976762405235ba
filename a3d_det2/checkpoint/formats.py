"""Weights of other models -> ours. Every key is accounted for: placed, known to be of no use here, or an error.

A :class:`Format` knows one kind of file. ``FORMATS`` is the list of those that need no Detectron2; the first that
matches a checkpoint converts it.
"""

import re

import torch
from torch import Tensor, nn

from ..layers import FusionConv
from ..layers.convert import check_stem_weights, grey_kernel
from ..modeling.densenet import DenseNet3D

NOTHING = re.compile(r"(?!)")
# What 2D weights need not have: what fuses slices, and counters that older files lack.
NOT_IN_2D = re.compile(r".*\.fusion_weight$|.*\.token_fusion\.|.*\.squeeze\.|.*\.num_batches_tracked$")
HEADS = re.compile(r"(roi_heads|proposal_generator|head)\.")


class Format:
    """A kind of checkpoint.

    Attributes:
        may_lack: pattern of the model's keys that the checkpoint need not have, or may have in another shape.
        may_leave_out: pattern of the converted keys that need no place in the model.
    """

    may_lack: re.Pattern = NOTHING
    may_leave_out: re.Pattern = NOTHING

    def matches(self, model: nn.Module, checkpoint: dict) -> bool:
        """Whether ``checkpoint["model"]``, a state dict, is of this kind, for this model."""
        raise NotImplementedError

    def convert(self, model: nn.Module, checkpoint: dict, stem_weights: str) -> dict[str, Tensor]:
        """The state dict in the names and shapes of ``model``.

        Args:
            stem_weights: see :func:`.grey_kernel`.

        Raises:
            ValueError: if a key is not known; the message lists all such keys.
        """
        raise NotImplementedError


def fit_kernels(module: nn.Module, state_dict: dict[str, Tensor], stem_weights: str = "middle") -> dict[str, Tensor]:
    """Give the 2D kernels of a state dict the shape that the fusion convs of ``module`` have them in.

    A kernel for three colours becomes grey where the convolution has one input channel. Where it has the slices as its
    channels, more or less than three, each gets an equal part of the grey one, so that equal slices give what a grey
    image gives. Those of ``i3d`` are inflated. All else, and what fits already, is left as it is.

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
            elif kernel.shape[1] == 3 and conv.in_channels != 3 and conv.groups == 1:
                kernel = grey_kernel(kernel, "sum").expand(-1, conv.in_channels, -1, -1) / conv.in_channels
            state_dict[f"{name}.weight"] = conv.from_2d(kernel)
    return state_dict


class TorchvisionDenseNet(Format):
    """torchvision's DenseNet, pretrained on ImageNet: the start of the published models. All but the trunk stays."""

    def matches(self, model, checkpoint):
        return "features.conv0.weight" in checkpoint["model"]

    def convert(self, model, checkpoint, stem_weights):
        """
        Raises:
            ValueError: if the model has not one trunk; see also :func:`load_torchvision_densenet`.
        """
        trunks = {name: m for name, m in model.named_modules() if isinstance(m, DenseNet3D)}
        if len(trunks) != 1:
            raise ValueError(
                "These are weights of a torchvision DenseNet; they need a model with one DenseNet3D trunk. "
                f"{type(model).__name__} has {len(trunks)}."
            )
        ((prefix, trunk),) = trunks.items()
        placed = fit_torchvision_densenet(trunk, checkpoint["model"], stem_weights)
        return {**model.state_dict(), **{f"{prefix}.{name}".lstrip("."): value for name, value in placed.items()}}


def load_torchvision_densenet(trunk: DenseNet3D, state_dict: dict[str, Tensor], stem_weights: str = "middle") -> None:
    """Load a torchvision DenseNet state dict into the trunk; see :func:`fit_torchvision_densenet`."""
    trunk.load_state_dict({**trunk.state_dict(), **fit_torchvision_densenet(trunk, state_dict, stem_weights)})


def fit_torchvision_densenet(
    trunk: DenseNet3D, state_dict: dict[str, Tensor], stem_weights: str = "middle"
) -> dict[str, Tensor]:
    """The part of a torchvision DenseNet state dict (such as that of ``densenet121``) that is in the trunk.

    Both key styles are understood: ``denselayer1.norm.1.weight`` of the published files and
    ``denselayer1.norm1.weight`` of the module. What lies behind the trunk's last dense block (transition, later blocks,
    final norm, classifier) is left out. Fusion weights, which no 2D network has, keep their initial value.

    Args:
        trunk: a :class:`DenseNet3D` of the same width and depth.
        state_dict: torchvision's.
        stem_weights: "middle" takes the middle of the three input channels of ``conv0`` (the published setup), "sum"
            adds them up, which is exactly the 2D network on a grey image repeated three times.

    Returns:
        in the names and shapes of the trunk.

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
    problems += [f"{name}: no value for it" for name in own if name not in placed and not NOT_IN_2D.match(name)]
    if problems:
        raise ValueError("These torchvision DenseNet weights do not fit the trunk:\n  " + "\n  ".join(problems))
    return placed


def _behind_trunk(name: str, last_block: int) -> bool:
    if name.startswith(("classifier.", "norm5.")):
        return True
    part = re.match(r"(denseblock|transition)(\d+)\.", name)
    return part is not None and int(part[2]) >= last_block + (part[1] == "denseblock")


class Published(Format):
    """The models that the authors of the A3D paper published, in the names of mmdetection 1. In those of A3D the
    convolutions outside the dense layers have fusion weights as well, which nothing uses."""

    may_leave_out = re.compile(r"(module\.)?backbone\.(conv0|transition\d+\.conv)\.adaptive_align_weights$")

    def matches(self, model, checkpoint):
        return is_published(checkpoint["model"])

    def convert(self, model, checkpoint, stem_weights):
        """See :func:`convert_published`."""
        theirs = checkpoint["model"]
        unused = {key: value for key, value in theirs.items() if self.may_leave_out.match(key)}  # for the log
        return fit_kernels(model, convert_published(theirs), stem_weights) | unused


def is_published(state_dict: dict[str, Tensor]) -> bool:
    """Whether the keys are those of the models that the authors of the paper published."""
    return any(re.match(r"(module\.)?backbone\.reductionz\d+\.", key) for key in state_dict)


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


def convert_published(
    state_dict: dict[str, Tensor], anchor_sizes: int = 6, anchor_ratios: int = 3
) -> dict[str, Tensor]:
    """The state dict of a published model in the names of a :class:`LesionRCNN` with the fused neck and the mask head.

    Beside the names, four things differ: kernels may have a D of 1; mmdetection counts anchors ratio by ratio,
    Detectron2 size by size; the background is the first class there and the last here; and there it has boxes and
    masks, which are dropped, as are the fusion weights outside the dense layers.

    Args:
        state_dict: theirs.
        anchor_sizes, anchor_ratios: how many of each the RPN has at every position.

    Raises:
        ValueError: if a key is not known, the message lists all such keys; or the RPN has other anchors.
    """
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    converted, unknown = {}, []
    for key, value in state_dict.items():
        if Published.may_leave_out.match(key):
            continue
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


class Detectron2Model(Format):
    """A 2D model of Detectron2 with ``build_resnet_fpn_backbone``, as its model zoo has them, for the same model with
    ``build_a3d_resnet_fpn_backbone``. Its backbone must fit; what fuses the slices is new, and so are those layers of
    the heads whose shape differs, such as that of the classes."""

    may_lack = re.compile(rf"{HEADS.pattern}|{NOT_IN_2D.pattern}")
    may_leave_out = HEADS

    def matches(self, model, checkpoint):
        return "backbone.bottom_up.stem.conv1.weight" in checkpoint["model"]

    def convert(self, model, checkpoint, stem_weights):
        renamed = {
            re.sub(r"^backbone\.bottom_up\.", "backbone.bottom_up.trunk.", key): value
            for key, value in checkpoint["model"].items()
        }
        return fit_kernels(model, renamed, stem_weights)


class OtherEngine(Format):
    """A model of this package trained with the other engine, Detectron2 or torchvision: trunk, squeeze and fused neck
    are taken, heads and FPN are new. Some layers of the heads have the same names, but another order of the classes.
    """

    _RPNS = ("proposal_generator.", "rpn.")  # of Detectron2 and of torchvision
    may_lack = re.compile(r"(?!backbone\.(bottom_up|neck)\.)")

    def matches(self, model, checkpoint):
        found = {self._rpn(checkpoint["model"]), self._rpn(model.state_dict())}
        return found == set(self._RPNS)

    def convert(self, model, checkpoint, stem_weights):
        return {key: value for key, value in checkpoint["model"].items() if not self.may_lack.match(key)}

    def _rpn(self, keys) -> str | None:
        return next((prefix for prefix in self._RPNS if any(key.startswith(prefix) for key in keys)), None)


FORMATS = (TorchvisionDenseNet(), Published(), Detectron2Model(), OtherEngine())
