from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances

from ..meta_arch import LesionRCNN


@META_ARCH_REGISTRY.register()
class PublishedRCNN(LesionRCNN):
    """A :class:`.LesionRCNN` whose boxes, inside of it, end where their last pixel does, so that the published rules of
    width, overlap and pooling are Detectron2's own.

    Those that come in, lesions to train on, and those that come out name their last pixel, as DeepLesion's do and as
    FROC takes them. Raw outputs, without postprocessing, end one pixel further, and so do the boxes that are given to
    have raw outputs made of them.
    """

    def forward(self, batched_inputs: list[dict], *args, **kwargs):
        """See :meth:`.LesionRCNN.forward`."""
        if self.training:
            batched_inputs = [{**x, "instances": _move_ends(x["instances"], "gt_boxes", 1)} for x in batched_inputs]
        return super().forward(batched_inputs, *args, **kwargs)

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """See :meth:`.LesionRCNN.inference`."""
        if detected_instances is not None and do_postprocess:
            detected_instances = [_move_ends(instances, "pred_boxes", 1) for instances in detected_instances]
        results = super().inference(batched_inputs, detected_instances, do_postprocess)
        if not do_postprocess:
            return results
        for x, result in zip(batched_inputs, results, strict=True):
            height, width = result["instances"].image_size
            # A pixel of the network's image, in those of the output.
            pixel = width / x["image"].shape[-1], height / x["image"].shape[-2]
            result["instances"] = _move_ends(result["instances"], "pred_boxes", [-side for side in pixel])
        return results


def _move_ends(instances: Instances, field: str, by) -> Instances:
    """A copy of instances with the last corner of each box, x2 and y2, moved by pixels: a number, or one for each."""
    boxes = instances.get(field).tensor.clone()
    boxes[:, 2:] += boxes.new_tensor(by)
    return Instances(instances.image_size, **{**instances.get_fields(), field: Boxes(boxes)})
