"""Samples as Detectron2's models take them."""

import copy

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

from .augmentation import RandomAffine, RandomHUJitter, ResizeIfNeeded
from .sample import Sample, SampleLoader, affine_fill, sample_options
from .workers import turn_off_opencv_threads


class DeepLesionMapper:
    """Turns a DeepLesion dataset dict into what the model takes, in training and in a test.

    :class:`.SampleLoader` does the work; here its boxes and masks become ``Instances``.

    OpenCV's threads are turned off where a mapper is built, as a worker that is forked while there are some waits for
    ever.
    """

    @configurable
    def __init__(self, *, augmentations: list[T.Augmentation | T.Transform], **options):
        """Build a mapper without a config.

        Args:
            augmentations: Detectron2's or fvcore's; they get the image as (H, W, D) float32, in HU or windowed.
            options: see :class:`.SampleLoader`.
        """
        turn_off_opencv_threads()  # whoever gives the mapper to a data loader will fork workers
        self.augmentations = T.AugmentationList(augmentations)
        self.load = SampleLoader(**options)

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        augmentations = [
            ResizeIfNeeded(augmentation) if isinstance(augmentation, T.ResizeShortestEdge) else augmentation
            for augmentation in utils.build_augmentation(cfg, is_train)
        ]
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        if is_train and cfg.INPUT.AFFINE.PROB > 0:
            affine, is_first = cfg.INPUT.AFFINE, cfg.INPUT.AFFINE.ORDER == "first"
            limits = affine.PROB, affine.SHIFT, affine.SCALE, affine.ROTATION, affine_fill(cfg)
            place = 0 if is_first else len(augmentations)
            augmentations.insert(place, RandomAffine(*limits, affine.INTERPOLATION, affine.BORDER))
        if is_train and cfg.INPUT.HU_JITTER.PROB > 0:
            jitter = cfg.INPUT.HU_JITTER
            augmentations.append(RandomHUJitter(jitter.PROB, jitter.OFFSET, jitter.GAIN))
        return {"augmentations": augmentations, **sample_options(cfg, is_train)}

    def __call__(self, dataset_dict: dict) -> dict | None:
        """Make a sample.

        Args:
            dataset_dict: as :func:`load_deeplesion` makes it.

        Returns:
            a copy of the dict with
                image: (D, H, W) float32 tensor.
                thickness (float): in mm, see :class:`.Sample`.
                instances: in training, instead of "annotations".
            None, in training and with ``unreadable_key_slice="skip"``, if the key slice cannot be read; Detectron2's
            data loader then takes another sample.

        Raises:
            FileNotFoundError, UnreadableSlice, ValueError: see :class:`.SampleLoader`.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        for annotation in dataset_dict.get("annotations", ()):
            annotation["bbox"] = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        sample = self.load(dataset_dict, self._augment)
        if sample is None:
            return None
        dataset_dict.pop("annotations", None)
        dataset_dict.update(image=torch.from_numpy(sample.image), thickness=sample.thickness)
        height, width = sample.original_size
        dataset_dict = {"height": height, "width": width, **dataset_dict}
        if self.load.is_train:
            dataset_dict["instances"] = self._instances(sample)
        return dataset_dict

    def _augment(self, image: np.ndarray) -> tuple[np.ndarray, T.TransformList]:
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        return aug_input.image, transforms

    def _instances(self, sample: Sample) -> Instances:
        instances = Instances(sample.image.shape[1:])
        instances.gt_boxes = Boxes(sample.boxes)
        instances.gt_classes = torch.from_numpy(sample.classes)
        if sample.masks is not None and self.load.mask_format == "polygon":
            instances.gt_masks = PolygonMasks(sample.masks)
        elif sample.masks is not None:
            masks = np.array(sample.masks, dtype=bool).reshape(-1, *sample.image.shape[1:])
            instances.gt_masks = BitMasks(torch.from_numpy(masks))
        return instances
