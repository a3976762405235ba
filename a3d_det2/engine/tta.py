"""Test-time augmentation of slices, Detectron2's."""

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn

from ..data.dataset_mapper import DeepLesionMapper


class LesionRCNNWithTTA(GeneralizedRCNNWithTTA):
    """Detectron2's test-time augmentation (TEST.AUG), also from dataset dicts: where one has no "image", its slices are
    read by :class:`.DeepLesionMapper` instead of as a picture.

    Args:
        cfg: of the model.
        model: a LesionRCNN.
        arguments: as of ``GeneralizedRCNNWithTTA``.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, **arguments):
        super().__init__(cfg, model, **arguments)
        self._read = DeepLesionMapper(cfg, is_train=False)

    def __call__(self, batched_inputs: list[dict]) -> list[dict]:
        return super().__call__([x if "image" in x else self._read(x) for x in batched_inputs])
