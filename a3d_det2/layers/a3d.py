import torch
from torch import Tensor, nn

from ..kernels.mixing import mix_slices
from .fusion_conv import FusionConv
from .thickness import check_reference, identity_share


class A3DConv(FusionConv):
    """Asymmetric 3D context fusion (``a3d``), Sec. 2.2 and Algorithm 1 of the A3D paper.

    Every output slice is, channel by channel, its own linear combination of all input slices; the 2D convolution
    follows. The operator knows which slice it looks at, so it needs no padding in D.

    Beyond ``.weight`` and ``.bias`` it has ``.fusion_weight`` P (D_in, D_out, C_in), initialised to the identity plus
    uniform noise in [-0.1, 0.1]: training starts close to no fusion.

    Args:
        thickness_aware: mix with P(t) = a I + (1 - a) P, where a = 1 - clamp(reference_thickness / t, 0, 1) as in
            AlignShift: thick slices mix less. Without new parameters, and exactly A3D up to the reference thickness.
            The paper names it as future work (Sec. 3.2).
        reference_thickness: in mm.
        the others: see :class:`FusionConv`.
    """

    def __init__(self, *args, thickness_aware: bool = False, reference_thickness: float = 2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.thickness_aware = thickness_aware
        self.reference_thickness = check_reference(reference_thickness)
        self.fusion_weight = nn.Parameter(torch.empty(self.num_slices, self.num_slices, self.in_channels))
        self.reset_fusion_weight()

    def reset_fusion_weight(self) -> None:
        with torch.no_grad():
            self.fusion_weight.uniform_(-0.1, 0.1).add_(torch.eye(self.num_slices).unsqueeze(2))

    def mix(self, x: Tensor, thickness: Tensor | None = None) -> Tensor:
        """The mixing step alone, Eq. (1): y[:, c, k] = sum_d P[d, k, c] x[:, c, d].

        Args:
            x: (N, C_in, D, H, W)
            thickness: (N,) in mm, for ``thickness_aware``; None is that of the scope.

        Returns:
            the same shape.
        """
        return mix_slices(x, self.mixing_weight(thickness, len(x)))

    def mixing_weight(self, thickness: Tensor | None, batch_size: int) -> Tensor:
        """P, (D_in, D_out, C_in), or P(t) of each sample, (N, D_in, D_out, C_in).

        Raises:
            ValueError: see :func:`identity_share`.
        """
        if not self.thickness_aware:
            return self.fusion_weight
        share = identity_share(thickness, self.reference_thickness, batch_size).to(self.fusion_weight)
        identity = torch.eye(self.num_slices, device=share.device, dtype=share.dtype).unsqueeze(2)
        return torch.lerp(self.fusion_weight, identity, share.view(-1, 1, 1, 1))

    def fuse(self, x: Tensor, thickness: Tensor | None) -> Tensor:
        return self.slice_conv(x)
