from torch import Tensor, nn

from .depth import conv3d, depth_kernel, plane_pads, same_pad
from .fusion_conv import FusionConv


class I3DConv(FusionConv):
    """Inflated 3D convolution (``i3d``), Sec. 2.1 (b) of the A3D paper: Carreira and Zisserman (CVPR 2017).

    A K x K x K convolution that starts as K repeats of the 2D kernel divided by K; D is padded with zeros. 1 x 1
    convolutions stay slice-wise.

    ``.weight`` is (C_out, C_in / groups, K, K, K). A 2D kernel found in a state dict is inflated as it is loaded.

    Args:
        see :class:`FusionConv`; the kernel must be square.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.depth = depth_kernel(self)
        self.weight = nn.Parameter(self.from_2d(self.weight.detach()))

    def from_2d(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(2).repeat(1, 1, self.depth, 1, 1) / self.depth

    def fuse(self, x: Tensor, thickness: Tensor | None) -> Tensor:
        pads = (same_pad(self.depth), *plane_pads(self))
        return conv3d(x, self.weight, self.bias, (1, *self.stride), pads, (1, *self.dilation), self.groups)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.dim() == 4:
            state_dict[f"{prefix}weight"] = self.from_2d(weight)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
