import numpy as np
import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

from ..layers.thickness import check_positive


@META_ARCH_REGISTRY.register()
class LesionRCNN(GeneralizedRCNN):
    """GeneralizedRCNN for (D, H, W) images: it hands the slice thickness to the backbone, one of this package's, and
    with VIS_PERIOD set draws the key slice.
    """

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: as of ``GeneralizedRCNN``, with "image" (D, H, W), and "thickness", the slice thickness in
                mm, where the operator needs it.

        Returns:
            losses in training, otherwise one {"instances": Instances} per image.

        Raises:
            ValueError: see :func:`slice_thickness`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor, slice_thickness(batched_inputs, self.device))
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        proposals, proposal_losses = self._proposals(images, features, batched_inputs, gt_instances)
        _, detector_losses = self.roi_heads(images, features, proposals, gt_instances)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**detector_losses, **proposal_losses}

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """As ``GeneralizedRCNN.inference``."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor, slice_thickness(batched_inputs, self.device))
        if detected_instances is None:
            proposals, _ = self._proposals(images, features, batched_inputs)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            given = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, given)
        return self._postprocess(results, batched_inputs, images.image_sizes) if do_postprocess else results

    def _proposals(self, images, features, batched_inputs, gt_instances=None):
        if self.proposal_generator is None:  # they were computed beforehand
            return [x["proposals"].to(self.device) for x in batched_inputs], {}
        return self.proposal_generator(images, features, gt_instances)

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


def slice_thickness(batched_inputs: list[dict], device: torch.device) -> Tensor | None:
    """The "thickness" of each input.

    Returns:
        (N,) in mm, or None where no input has it.

    Raises:
        ValueError: if some have it and others not, or one is not positive.
    """
    values = [x["thickness"] for x in batched_inputs if "thickness" in x]
    if not values:
        return None
    if len(values) < len(batched_inputs):
        raise ValueError(f"Expected 'thickness' in every input. Got it in {len(values)} of {len(batched_inputs)}!")
    thickness = torch.tensor(values, dtype=torch.float32)
    check_positive(thickness)
    return thickness.to(device, non_blocking=True)
