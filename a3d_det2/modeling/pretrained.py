"""ImageNet 2D weights -> the trunk's names. Every key is accounted for: placed, known to be cut off, or an error."""

import re

from torch import Tensor

from .densenet import DenseNet3D

# How the stem's three colour channels become one grey channel.
STEM_WEIGHTS = ("middle", "sum")


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
    if stem_weights not in STEM_WEIGHTS:
        raise ValueError(f"Unknown stem_weights {stem_weights!r}. Choose one of {', '.join(STEM_WEIGHTS)}.")
    last = len(trunk.out_channels)
    own = trunk.state_dict()
    placed, problems = {}, []
    for key, value in state_dict.items():
        name = re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key.removeprefix("features."))
        if name == "conv0.weight" and value.shape[1] == 3:
            value = value[:, 1:2] if stem_weights == "middle" else value.sum(1, keepdim=True)
        if name in own:
            if value.shape != own[name].shape:
                problems.append(f"{key}: expected shape {tuple(own[name].shape)}, got {tuple(value.shape)}")
            placed[name] = value
        elif not _behind_trunk(name, last):
            problems.append(f"{key}: no such parameter in the trunk")
    problems += [f"{name}: no value for it" for name in own if name not in placed and not _may_be_absent(name)]
    if problems:
        raise ValueError("These torchvision DenseNet weights do not fit the trunk:\n  " + "\n  ".join(problems))
    trunk.load_state_dict({**own, **placed})


def _behind_trunk(name: str, last_block: int) -> bool:
    if name.startswith(("classifier.", "norm5.")):
        return True
    part = re.match(r"(denseblock|transition)(\d+)\.", name)
    return part is not None and int(part[2]) >= last_block + (part[1] == "denseblock")


def _may_be_absent(name: str) -> bool:
    # torchvision's published files predate num_batches_tracked.
    return name.endswith((".fusion_weight", ".num_batches_tracked"))
