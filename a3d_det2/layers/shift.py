import torch
from torch import Tensor

from .fusion_conv import FusionConv
from .thickness import check_reference, identity_share

ENDS = ("zero", "keep")


class TSMConv(FusionConv):
    """Shift (``tsm``), Sec. 2.1 (e) of the A3D paper: the temporal shift module of Lin et al. (ICCV 2019).

    Of every 8 input channels one takes the slice after, one the slice before, and six stay; the 2D convolution follows.

    Args:
        n_fold: of the input channels 1 / n_fold take the slice after, and as many the slice before; 2 or more.
        ends: what comes from beyond the first and last slice: "zero", or "keep" for the end slice itself.
        the others: see :class:`FusionConv`.

    Raises:
        ValueError: if ``n_fold`` is below 2, or ``ends`` is unknown.
    """

    def __init__(self, *args, n_fold: int = 8, ends: str = "zero", **kwargs):
        super().__init__(*args, **kwargs)
        if n_fold < 2:
            raise ValueError(f"Expected n_fold from 2 on, as two parts of the channels are shifted, got {n_fold}.")
        if ends not in ENDS:
            raise ValueError(f"Unknown ends {ends!r}. Choose one of {', '.join(ENDS)}.")
        self.ends = ends
        self.fold = self.in_channels // n_fold

    def mix(self, x: Tensor, thickness: Tensor | None = None) -> Tensor:
        """The shift alone: channels [0, fold) take slice d + 1, [fold, 2 fold) slice d - 1, fold = C_in // n_fold.

        Args:
            x: (N, C_in, D, H, W)
            thickness: not used by this operator.

        Returns:
            the same shape.
        """
        after, before, rest = self._split(x)
        return torch.cat([self._neighbour(after, 1), self._neighbour(before, -1), rest], dim=1)

    def fuse(self, x: Tensor, thickness: Tensor | None) -> Tensor:
        return self.slice_conv(self.mix(x, thickness))

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([self.fold, self.fold, self.in_channels - 2 * self.fold], dim=1)

    def _neighbour(self, x: Tensor, step: int) -> Tensor:
        """Slice d + step in the place of slice d: (N, C, D, H, W) -> the same shape."""
        inside, edge = (x[:, :, 1:], x[:, :, -1:]) if step > 0 else (x[:, :, :-1], x[:, :, :1])
        if self.ends == "zero":
            edge = torch.zeros_like(edge)
        return torch.cat([inside, edge] if step > 0 else [edge, inside], dim=2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, fold={self.fold}, ends={self.ends!r}"


class AlignShiftConv(TSMConv):
    """Shift by a part of a slice (``alignshift``), Yang et al. (MICCAI 2020): the thicker the slices, the less.

    The channels that TSM shifts become x[d] a + x[d +- 1] (1 - a), a = 1 - clamp(reference_thickness / t, 0, 1): a full
    shift up to the reference thickness, none for very thick slices. This interpolates between thick slices, so the
    input needs not be resampled for them.

    Args:
        reference_thickness: in mm.
        n_fold, ends: as of :class:`TSMConv`; the published setup keeps the end slices.
        the others: see :class:`FusionConv`.
    """

    def __init__(self, *args, reference_thickness: float = 2.0, ends: str = "keep", **kwargs):
        super().__init__(*args, ends=ends, **kwargs)
        self.reference_thickness = check_reference(reference_thickness)

    def mix(self, x: Tensor, thickness: Tensor | None = None) -> Tensor:
        """The shift alone.

        Args:
            x: (N, C_in, D, H, W)
            thickness: (N,) in mm.

        Returns:
            the same shape.

        Raises:
            ValueError: see :func:`identity_share`.
        """
        share = identity_share(thickness, self.reference_thickness, len(x)).to(x).view(-1, 1, 1, 1, 1)
        after, before, rest = self._split(x)
        shifted = [torch.lerp(self._neighbour(part, step), part, share) for part, step in ((after, 1), (before, -1))]
        return torch.cat([*shifted, rest], dim=1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reference_thickness={self.reference_thickness}"
