import numpy as np
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.utils.events import get_event_storage
from detectron2.utils.visualizer import Visualizer


@META_ARCH_REGISTRY.register()
class LesionRCNN(GeneralizedRCNN):
    """GeneralizedRCNN for (D, H, W) images: with VIS_PERIOD set, it draws the key slice."""

    def visualize_training(self, batched_inputs, proposals) -> None:
        """Put the first image's key slice into the event storage: ground truth left, up to 20 proposals right.

        Args:
            batched_inputs: list of dicts with "image" (D, H, W) and "instances".
            proposals: list of Instances with "proposal_boxes".
        """
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
