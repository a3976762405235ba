"""Detectron2's meta-architectures over slices: with the mixin any of them takes (D, H, W) images.

@META_ARCH_REGISTRY.register()
class LesionFCOS(TakesSlices, FCOS):
    pass
"""

import numpy as np
import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

from ..kernels.mixing import is_exported
from ..layers.thickness import check_positive, slice_thickness


class TakesSlices:
    """Makes a meta-architecture of Detectron2 one over slices: its forward runs within the scope of their thickness.

    An input has "image" (D, H, W), windowed, and where the operator needs it "thickness", in mm, a number or a tensor
    that holds one. All else, also what comes out, is that of the architecture. Where another method than the forward
    runs the backbone, as ``inference`` of a :class:`LesionRCNN`, it has to open :meth:`slice_scope` itself.
    """

    @classmethod
    def from_config(cls, cfg):
        """
        Raises:
            ValueError: if an architecture asks for a map that the backbone does not have.
        """
        try:
            return super().from_config(cfg)
        except KeyError as error:
            raise ValueError(
                f"{error}: expected IN_FEATURES of {cfg.MODEL.META_ARCHITECTURE} and its heads among the outputs of "
                f"{cfg.MODEL.BACKBONE.NAME}."
            ) from error

    def forward(self, batched_inputs: list[dict], *args, **kwargs):
        """Run the architecture's own forward, whose arguments and results these are.

        Raises:
            ValueError: if the number of slices is not that of the backbone; see also :func:`check_windowed` and
                :func:`thickness_of`.
        """
        with self.slice_scope(batched_inputs):
            return super().forward(batched_inputs, *args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args):
        """Refuse what a checkpointer that does not know the trunk would leave out with no more than a line of its log.

        Raises:
            ValueError: if the weights are those of a torchvision DenseNet.
        """
        if "features.conv0.weight" in state_dict:
            raise ValueError(
                "Expected weights by the names of this model, got those of a torchvision DenseNet. Into the trunk they "
                "are loaded by a3d_det2.LesionCheckpointer, in the place of Detectron2's DetectionCheckpointer."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def slice_scope(self, batched_inputs: list[dict]):
        """The scope for a method that runs the backbone; opening it raises as :meth:`forward`."""
        channels, takes_slices = self.pixel_mean.numel(), any(hasattr(m, "num_slices") for m in self.backbone.modules())
        for x in batched_inputs:
            check_windowed(x["image"])
            if not takes_slices and len(x["image"]) != channels:
                raise ValueError(
                    "A 2D backbone has the slices as its channels: expected one entry of MODEL.PIXEL_MEAN and "
                    f"PIXEL_STD for each of the {len(x['image'])} slices (MODEL.A3D.NUM_SLICES), got {channels}. "
                    "Backbones of this package, build_a3d_..., take any number of slices with one entry."
                )
        return slice_thickness(thickness_of(batched_inputs, self.device))


@META_ARCH_REGISTRY.register()
class LesionRCNN(TakesSlices, GeneralizedRCNN):
    """GeneralizedRCNN over slices; with VIS_PERIOD set it draws the key slice."""

    def inference(self, batched_inputs: list[dict], *args, **kwargs) -> list[dict] | list[Instances]:
        """Run ``GeneralizedRCNN.inference``, whose arguments and results these are; raises as the forward."""
        with self.slice_scope(batched_inputs):
            return super().inference(batched_inputs, *args, **kwargs)

    def visualize_training(self, batched_inputs: list[dict], proposals: list[Instances]) -> None:
        """Put the first image's key slice into the event storage: ground truth left, up to 20 proposals right."""
        image = batched_inputs[0]["image"]
        key_slice = image[image.shape[0] // 2].cpu().numpy()
        grey = np.interp(key_slice, (key_slice.min(), max(key_slice.max(), key_slice.min() + 1)), (0, 255))
        grey = np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)  # (H, W) -> (H, W, 3)
        panels = [
            Visualizer(grey).overlay_instances(boxes=boxes.tensor.detach().cpu().numpy()).get_image()
            for boxes in (batched_inputs[0]["instances"].gt_boxes, proposals[0].proposal_boxes[:20])
        ]
        get_event_storage().put_image(
            "Left: GT bounding boxes;  Right: Predicted proposals", np.concatenate(panels, axis=1).transpose(2, 0, 1)
        )


@META_ARCH_REGISTRY.register()
class LesionRetinaNet(TakesSlices, RetinaNet):
    """RetinaNet over slices. As Detectron2's RetinaNet it draws nothing with VIS_PERIOD."""


def thickness_of(batched_inputs: list[dict], device: torch.device) -> Tensor | None:
    """The "thickness" of each input.

    Returns:
        (N,) float32 in mm, or None where no input has it.

    Raises:
        ValueError: if some have it and others not, or one is not positive; a tensor on a GPU, or one that is traced, is
            not looked at.
    """
    values = [x["thickness"] for x in batched_inputs if "thickness" in x]
    if not values:
        return None
    if len(values) < len(batched_inputs):
        raise ValueError(f"Expected 'thickness' in every input. Got it in {len(values)} of {len(batched_inputs)}!")
    thickness = torch.stack([torch.as_tensor(value, dtype=torch.float32).reshape(()) for value in values])
    if thickness.device.type == "cpu" and not is_exported():
        check_positive(thickness)
    return thickness.to(device, non_blocking=True)


def check_windowed(image: Tensor) -> None:
    """Detectron2's own mapper reads a 16-bit slice as 8 bits, nearly all of them white, and a network trains on that
    without a complaint; this notices it.

    Args:
        image: (D, H, W). One that lies on a GPU is not looked at.

    Raises:
        ValueError: if it is an 8-bit image, as its dtype or its values say, rather than windowed HU.
    """
    is_8_bit = image.dtype == torch.uint8
    if not is_8_bit and image.device.type == "cpu" and image.numel() and not is_exported():
        low, high = image.aminmax()
        is_8_bit = bool(low >= 0) and bool(high > 205) and bool((image == image.round()).all())
    if is_8_bit:
        raise ValueError(
            "Expected slices in HU that window_hu has mapped to [-50, 205], as DeepLesionMapper gives them. Got an "
            f"8-bit image, {tuple(image.shape)} of {image.dtype}, as Detectron2's own DatasetMapper reads it: build "
            "the data loader with DeepLesionMapper."
        )
