"""Test-time augmentation of slices, Detectron2's."""

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNNWithTTA
from fvcore.transforms.transform import Transform, TransformList
from torch import nn

from ..data.dataset_mapper import DeepLesionMapper
from ..data.transforms import AffineTransform
from ..modeling.published import PublishedRCNN


class LesionRCNNWithTTA(GeneralizedRCNNWithTTA):
    """Detectron2's test-time augmentation (TEST.AUG), also from dataset dicts: where one has no "image", its slices are
    read by :class:`.DeepLesionMapper` instead of as a picture.

    Boxes name pixels, 0 the centre of the first, while transforms take continuous coordinates: boxes are shifted by
    half a pixel and back, or those of a flipped image would be one pixel off.

    Args:
        cfg: of the model.
        model: a LesionRCNN.
        arguments: as of ``GeneralizedRCNNWithTTA``.

    Raises:
        ValueError: for a PublishedRCNN, whose raw boxes end one pixel further and which was published without.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, **arguments):
        if isinstance(model, PublishedRCNN):
            raise ValueError("Expected a LesionRCNN for test-time augmentation, got a PublishedRCNN.")
        super().__init__(cfg, model, **arguments)
        self._read = DeepLesionMapper(cfg, is_train=False)

    def __call__(self, batched_inputs: list[dict]) -> list[dict]:
        return super().__call__([x if "image" in x else self._read(x) for x in batched_inputs])

    def _get_augmented_inputs(self, input: dict) -> tuple[list[dict], list[Transform]]:
        augmented, transforms = super()._get_augmented_inputs(input)
        return augmented, [TransformList([_shift(0.5), transform, _shift(-0.5)]) for transform in transforms]


def _shift(pixels: float) -> AffineTransform:
    return AffineTransform([[1, 0, pixels], [0, 1, pixels]], fill=0)
