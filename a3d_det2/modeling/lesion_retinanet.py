from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.postprocessing import detector_postprocess
from torch import Tensor

from .lesion_rcnn import slice_thickness


@META_ARCH_REGISTRY.register()
class LesionRetinaNet(RetinaNet):
    """RetinaNet for (D, H, W) images: it hands the slice thickness to the backbone, one of this package's.

    As Detectron2's RetinaNet it draws nothing with VIS_PERIOD.
    """

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """As :meth:`LesionRCNN.forward`."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor, slice_thickness(batched_inputs, self.device))
        features = [features[name] for name in self.head_in_features]
        predictions = self.head(features)
        if self.training:
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
            return self.forward_training(images, features, predictions, gt_instances)
        results = self.forward_inference(images, features, predictions)
        return [
            {"instances": detector_postprocess(result, x.get("height", size[0]), x.get("width", size[1]))}
            for result, x, size in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]
