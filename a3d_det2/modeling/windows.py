"""Several HU windows of the same slices as the channels of a network. Torch only."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Window = tuple[float, float]  # lowest and highest HU


class WindowChannels(nn.Module):
    """Slices that :func:`~a3d_det2.data.slices.window_hu` has mapped -> the same slices in several narrower windows, as
    it would map them: (N, D, H, W) -> (N, C, D, H, W).

    Args:
        windows: of each channel, as MVP-Net has them (arXiv 1909.04247).
        hu_window: of the input; it encloses the others.

    Raises:
        ValueError: if a window is empty or not within ``hu_window``.
    """

    def __init__(self, windows: Sequence[Window], hu_window: Window):
        super().__init__()
        lowest, highest = hu_window
        for low, high in windows:
            if not lowest <= low < high <= highest:
                raise ValueError(
                    f"Expected windows (low, high) with low < high within INPUT.HU_WINDOW {tuple(hu_window)}, got "
                    f"{(low, high)} among INPUT.HU_WINDOWS."
                )
        ends = torch.tensor(windows, dtype=torch.float64)
        low, high = ((ends - lowest) / (highest - lowest) * 255 - 50).float().unbind(1)  # as values of the input
        # No weights: a checkpoint has none of them.
        self.register_buffer("low", low.view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("width", (high - low).view(-1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return ((x.unsqueeze(1) - self.low) / self.width).clamp(0, 1) * 255 - 50
