"""Any 2D convolutional network -> the same network over D slices.

A converted network works on the slices as a batch of 2D images, (N * D, C, H, W), so that all of its layers (norms,
pools, upsampling, and whatever its forward does between them) work slice by slice as they are; a norm over the batch is
then a norm over batch and slices. Only the convolutions are exchanged: they see the slices of a sample together.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .build import build_fusion_conv
from .convertible import check_convertible, check_not_held_elsewhere, check_not_tied, check_plain
from .fusion_conv import FusionConv, fold_slices, unfold_slices
from .thickness import current_thickness, slice_thickness
from .token_fusion import TokenFusion, token_channels

# How the three colour channels of a 2D network's first convolution become one grey channel.
STEM_WEIGHTS = ("middle", "sum")


def convert_to_3d(
    module: nn.Module,
    op: str,
    num_slices: int,
    *,
    stem_weights: str | None = None,
    slice_wise: Callable[[str, nn.Conv2d], bool] | None = None,
    subclasses: Mapping[type[nn.Conv2d], Callable[[FusionConv, nn.Conv2d], None]] | None = None,
    token_blocks: Sequence[type[nn.Module]] = (),
    **op_options,
) -> nn.Module:
    """Turn a 2D network into one that sees D slices, its convolutions exchanged for fusion convs.

    Where the 2D network takes (N, C, H, W) and gives (N, C', ...), the result takes ``(N, C, D, H, W), thickness=None``
    and gives (N, C', D, ...), for each tensor of its output. It is a copy of the same class with the same names, so a
    state dict of the 2D network fits, but for what the operators add (``.fusion_weight``); the kernels of ``i3d`` are
    inflated. Transposed convolutions work slice by slice. A single ``nn.Conv2d`` becomes a fusion conv.

    Kernels keep their ``requires_grad``; what the operators add is always trained. A convolution that the first forward
    does not call is named in a warning. Where the network checkpoints activations within itself and an operator uses
    the thickness, the backward of each forward must come before the next forward with another thickness, and once.
    Hooks of the network itself see (N, C, D, H, W). ``DataParallel`` is an error, and a shallow copy of the network
    runs the weights of the original; deep copies, pickles and DistributedDataParallel work.

    Args:
        module: a network whose convolutions are ``nn.Conv2d`` and called as modules; it is left as it is.
        op: a key of ``FUSION_CONVS``.
        num_slices: D.
        stem_weights: how the three input channels of the first convolution become one, for grey slices: "middle" takes
            the middle one, "sum" adds them up, exactly the 2D network on a grey image repeated three times. None keeps
            the channels.
        slice_wise: says by path and module which convolutions stay without fusion, such as
            ``lambda name, conv: name == "conv1" or conv.groups > 1``. None of them by default.
        subclasses: for subclasses of ``nn.Conv2d`` with a forward of their own, what gives the fusion conv in their
            place, called with it and the original, the rest of what they do; it may register a forward hook, whose
            tensors are (N * D, C, H, W). For Detectron2's own, ``{detectron2.layers.Conv2d:``
            :func:`keep_norm_and_activation```}``.
        token_blocks: classes of a network of tokens, such as a Swin or a ViT, behind each of whose blocks, (N * D, ...,
            C) in and out, the tokens of the same place are mixed across slices, see :class:`.TokenFusion`. At first it
            changes nothing. Convolutions, such as that of the patch embedding, are exchanged as everywhere.
        op_options: further arguments of the operator, such as ``thickness_aware=True`` for ``a3d``.

    Raises:
        ValueError: if there is no block of one of ``token_blocks``, or a module cannot be converted; the message names
            its path in the network.
    """
    module, subclasses = copy.deepcopy(module), subclasses or {}
    forward = _Forward(module, num_slices)
    stem = None if stem_weights is None else _colour_stem(module, stem_weights)
    exchanged: dict[nn.Module, FusionConv] = {}

    def exchange(path: str, conv: nn.Conv2d) -> FusionConv:
        try:
            check_plain(conv, subclasses)
            in_channels = 1 if conv is stem else conv.in_channels
            plain = slice_wise is not None and slice_wise(path, conv)
            same = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
            fusion_conv = build_fusion_conv(
                "none" if plain else op,
                in_channels,
                num_slices=num_slices,
                bias=conv.bias is not None,
                **{name: getattr(conv, name) for name in same},
                **({} if plain else op_options),
            ).to(conv.weight.device, conv.weight.dtype)
        except ValueError as error:
            raise ValueError(f"Cannot convert {path or 'the module'}, {conv}: {error}") from error
        kernel = conv.weight.detach()
        fusion_conv.weight.data.copy_(
            fusion_conv.from_2d(grey_kernel(kernel, stem_weights) if conv is stem else kernel)
        )
        fusion_conv.weight.requires_grad_(conv.weight.requires_grad)
        if conv.bias is not None:
            fusion_conv.bias.data.copy_(conv.bias.detach())
            fusion_conv.bias.requires_grad_(conv.bias.requires_grad)
        if path:
            fusion_conv.register_forward_pre_hook(forward.unfold)
            fusion_conv.register_forward_hook(forward.fold)
        if type(conv) in subclasses:
            subclasses[type(conv)](fusion_conv, conv)
        return fusion_conv.train(conv.training)

    places = list(_walk(module))
    check_not_tied({child: path for path, _, _, child in places if isinstance(child, nn.Conv2d)})
    for path, parent, name, child in places:
        check_convertible(path, child)
        if isinstance(child, nn.Conv2d):
            if child not in exchanged:
                exchanged[child] = exchange(path, child)
            if parent is None:
                return exchanged[child]
            parent.register_module(name, exchanged[child])
    if not exchanged:
        raise ValueError(f"Cannot convert {type(module).__name__}: there is no nn.Conv2d in it.")
    for kind in token_blocks:
        blocks = [block for block in module.modules() if type(block) is kind]
        if not blocks:
            raise ValueError(f"Cannot convert {type(module).__name__}: there is no {kind.__name__} in it.")
        for block in blocks:
            fusion = TokenFusion(op, token_channels(block), num_slices, **op_options)
            block.token_fusion = fusion.to(next(block.parameters()))
            block.register_forward_hook(forward.mix_tokens)
    check_not_held_elsewhere(module, exchanged)
    forward.uncalled = set(exchanged.values())
    module.forward = forward.run
    module._replicate_for_data_parallel = forward.refuse_replicas
    return module


def grey_kernel(weight: Tensor, stem_weights: str) -> Tensor:
    """A kernel for three colour channels -> one for a grey channel: (C_out, 3, K, K) -> (C_out, 1, K, K).

    Args:
        stem_weights: "middle" takes the middle channel (the published setup), "sum" adds them up, which is exactly the
            colour kernel on a grey image repeated three times.

    Raises:
        ValueError: if ``stem_weights`` is unknown.
    """
    check_stem_weights(stem_weights)
    return weight[:, 1:2] if stem_weights == "middle" else weight.sum(1, keepdim=True)


def check_stem_weights(stem_weights: str) -> None:
    """
    Raises:
        ValueError: if ``stem_weights`` is unknown.
    """
    if stem_weights not in STEM_WEIGHTS:
        raise ValueError(f"Unknown stem_weights {stem_weights!r}. Choose one of {', '.join(STEM_WEIGHTS)}.")


class _Forward:
    """Takes the place of the forward of a converted network: slices into the batch, the 2D forward, and back. The hooks
    of its convolutions are methods of it, as they need the batch size."""

    def __init__(self, module: nn.Module, num_slices: int):
        self.module = module
        self.original = vars(module).get("forward")  # where somebody has replaced that of the class
        self.num_slices = num_slices
        self.batch_size = 0
        self.uncalled: set[FusionConv] | None = set()  # until the first forward has ended
        # A checkpointed part of the network is run once more in the backward, outside of all scopes: with which
        # thickness, and whether the forwards since then leave a doubt about that.
        self._trained: Tensor | None = None
        self._ambiguous = self._recomputed = self._running = False

    def run(self, x: Tensor, thickness: Tensor | None = None):
        name = type(self.module).__name__
        if x.dim() != 5 or x.shape[2] != self.num_slices:
            raise ValueError(
                f"The converted {name} takes an input of shape (N, C, D, H, W) with D = {self.num_slices}. "
                f"Got {tuple(x.shape)} instead!"
            )
        self.batch_size = len(x)
        with slice_thickness(thickness):
            self._remember(current_thickness())
            around, self._running = self._running, True
            try:
                images = fold_slices(x)
                output = self.original(images) if self.original else type(self.module).forward(self.module, images)
            finally:
                self._running = around
        if not torch.compiler.is_compiling():
            if self.uncalled:
                names = ", ".join(name for name, conv in self.module.named_modules() if conv in self.uncalled)
                logging.getLogger(__name__).warning(
                    f"The first forward of the converted {name} did not call {names}. If it uses their weights in "
                    "another way, no slices are fused there."
                )
            self.uncalled = None
        return tree_map(self._unfold_output, output)

    def _remember(self, thickness: Tensor | None) -> None:
        if thickness is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            pending = self._trained is not None and not self._recomputed
            self._ambiguous = pending and (self._ambiguous or not torch.equal(self._trained, thickness))
            self._trained, self._recomputed = thickness, False

    def _unfold_output(self, y):
        if not isinstance(y, Tensor):
            if y is None or isinstance(y, bool | int | float | str):
                return y
            raise ValueError(f"A converted network gives tensors, in tuples, lists or dicts. Got a {type(y).__name__}!")
        if y.dim() == 0:
            return y
        if len(y) != self.batch_size * self.num_slices:
            raise ValueError(
                f"Expected outputs of shape (N * D, ...) = ({self.batch_size * self.num_slices}, ...) from the 2D "
                f"network. Got {tuple(y.shape)} instead!"
            )
        y = y.unflatten(0, (self.batch_size, self.num_slices))  # (N * D, ...) -> (N, D, ...)
        return y if y.dim() == 2 else y.transpose(1, 2)  # (N, D, C, ...) -> (N, C, D, ...)

    def unfold(self, conv: FusionConv, args: tuple) -> tuple:
        (x,) = args
        if x.dim() != 4:
            raise ValueError(
                f"Within a converted network slices are in the batch, (N * D, C, H, W). Got {tuple(x.shape)} instead! "
                "Call the network as a whole, or convert the part that is called."
            )
        if torch.compiler.is_compiling():
            # With the batch size at hand the compiler has no quotient of sizes to think about.
            return (x.unflatten(0, (self.batch_size, self.num_slices)).transpose(1, 2),)
        if self.uncalled:
            self.uncalled.discard(conv)
        return unfold_slices(x, self.num_slices), self._recomputed_thickness()

    def _recomputed_thickness(self) -> Tensor | None:
        """None in a forward, also one within a backward: the scope has it."""
        if self._trained is None or self._running or torch._C._current_graph_task_id() == -1:
            return None
        if self._ambiguous:
            raise RuntimeError(
                "A checkpointed part of a converted network is run once more in the backward, after forwards with "
                "different slice thickness: run the backward of each before the next."
            )
        self._recomputed = True
        return self._trained

    def refuse_replicas(self):
        raise NotImplementedError(
            f"The converted {type(self.module).__name__} cannot be replicated by DataParallel: expected "
            "DistributedDataParallel, with a process for each GPU."
        )

    def mix_tokens(self, block: nn.Module, args: tuple, y: Tensor) -> Tensor:
        return block.token_fusion(y, None if torch.compiler.is_compiling() else self._recomputed_thickness())

    def fold(self, conv: FusionConv, args: tuple, y: Tensor) -> Tensor:
        return fold_slices(y)


def _walk(
    module: nn.Module, path: str = "", parent: nn.Module | None = None, name: str = ""
) -> Iterator[tuple[str, nn.Module | None, str, nn.Module]]:
    """(path, parent, name in the parent, module), a shared module once for each of its places."""
    yield path, parent, name, module
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{path}.{child_name}".lstrip("."), module, child_name)


def _colour_stem(module: nn.Module, stem_weights: str) -> nn.Conv2d:
    path, stem = next(((path, m) for path, m in module.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if stem is None or stem.in_channels != 3 or stem.groups != 1:
        raise ValueError(
            f"stem_weights={stem_weights!r} needs a first convolution with 3 input channels. "
            f"Got {path or 'none'}, {stem}."
        )
    return stem


def keep_norm_and_activation(fusion_conv: FusionConv, original: nn.Conv2d) -> None:
    """Give a fusion conv the ``norm`` and ``activation`` that Detectron2's Conv2d has beside the convolution; for the
    ``subclasses`` of :func:`convert_to_3d`."""
    fusion_conv.norm, fusion_conv.activation = original.norm, original.activation
    fusion_conv.register_forward_hook(_norm_and_activation)


def _norm_and_activation(conv: FusionConv, args: tuple, y: Tensor) -> Tensor:
    if conv.norm is not None:
        y = conv.norm(y)
    return y if conv.activation is None else conv.activation(y)
