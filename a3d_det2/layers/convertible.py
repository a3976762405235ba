"""What cannot be converted to 3D, and why: a module that would quietly do something else is an error by its path."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_leaves

from .fusion_conv import FusionConv

_OVER_3D = (
    nn.Conv3d,
    nn.ConvTranspose3d,
    nn.BatchNorm3d,
    nn.InstanceNorm3d,
    nn.MaxPool3d,
    nn.AvgPool3d,
    nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool3d,
)


def check_convertible(path: str, module: nn.Module) -> None:
    """
    Raises:
        ValueError: if ``module`` cannot be converted, nor left to work slice by slice.
    """
    reason = None
    if isinstance(module, _OVER_3D):
        reason = "it works on volumes, not on 2D images"
    elif isinstance(module, FusionConv):
        reason = "it is a fusion conv already"
    elif isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        reason = "it does not know its channels before it has seen an input"
    elif isinstance(module, ScriptModule):
        reason = "it is compiled to TorchScript"
    elif hasattr(module, "parametrizations"):
        reason = "its weights are parametrized"
    elif not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() >= 4:
            reason = "it has a convolution's kernel but is no nn.Conv2d"
    if reason is not None:
        raise ValueError(f"Cannot convert {path or 'the module'}, a {type(module).__name__}: {reason}.")


def check_plain(conv: nn.Conv2d, known_subclasses: Mapping) -> None:
    """
    Args:
        conv: to be exchanged for a fusion conv.
        known_subclasses: of ``nn.Conv2d``, for which the caller knows what they do beside the convolution.

    Raises:
        ValueError: if ``conv`` has or does something that a fusion conv in its place would not.
    """
    if conv.padding_mode != "zeros":
        raise ValueError(f"only padding_mode='zeros' is known. Got {conv.padding_mode!r}!")
    if conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks:
        raise ValueError("it has hooks, which would be lost")
    if type(conv) in known_subclasses:
        return
    if type(conv).forward is not nn.Conv2d.forward or type(conv)._conv_forward is not nn.Conv2d._conv_forward:
        raise ValueError(f"{type(conv).__name__} has a forward of its own, which is not among the subclasses given")
    more = [name for name in conv.state_dict(keep_vars=True) if name not in ("weight", "bias")]
    if more:
        raise ValueError(f"{type(conv).__name__} has {', '.join(more)} beside weight and bias, and no subclass given")


def check_not_held_elsewhere(module: nn.Module, exchanged: Mapping[nn.Module, FusionConv]) -> None:
    """
    Raises:
        ValueError: if a module keeps an exchanged convolution, or a method of it, in an attribute that is no submodule,
            such as a list that is no ``nn.ModuleList``; what its forward calls from there would stay as it was.
    """

    def is_exchanged(leaf) -> bool:
        leaf = getattr(leaf, "__self__", leaf)  # of a bound method
        return isinstance(leaf, nn.Module) and leaf in exchanged

    torchs_own = vars(nn.Module()).keys()
    for path, parent in module.named_modules():
        for attribute, value in vars(parent).items():
            if attribute not in torchs_own and any(is_exchanged(leaf) for leaf in tree_leaves(value)):
                raise ValueError(
                    f"Cannot convert {path or 'the module'}, a {type(parent).__name__}: it keeps a convolution in "
                    f"{attribute}, a {type(value).__name__}, where it cannot be exchanged."
                )


def check_not_tied(convs: Mapping[nn.Conv2d, str]) -> None:
    """
    Raises:
        ValueError: if two convolutions share a parameter, which they would no longer do.
    """
    owners: dict[nn.Parameter, str] = {}
    for conv, path in convs.items():
        for parameter in conv.parameters(recurse=False):
            if parameter in owners:
                raise ValueError(f"Cannot convert {path}: it shares a parameter with {owners[parameter]}.")
            owners[parameter] = path
