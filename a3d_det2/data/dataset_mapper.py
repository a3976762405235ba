import copy
import math

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Instances

from .augmentation import RandomAffine
from .slices import load_slice_stack, window_hu
from .weak_masks import recist_ellipse


class DeepLesionMapper:
    """A DeepLesion dataset dict -> what the model takes; one class for training and testing.

    1. Load the key slice and its neighbours, resampled along z, in HU.
    2. Augment image, boxes and masks together. DeepLesion's boxes name pixels (0 is the centre of the first), while
       transforms take continuous coordinates (0 is its edge): boxes are shifted by half a pixel and back.
    3. Window the HU values.
    4. In training, turn the annotations into ``Instances``; a dict without annotations counts as having none. A lesion
       without a mask gets the outline through its RECIST axes.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        num_slices: int,
        slice_interval: float,
        resampling: str = "linear",
        hu_window: tuple[float, float],
        augmentations: list[T.Augmentation | T.Transform],
        use_instance_mask: bool = False,
        mask_format: str = "polygon",
    ):
        """
        Args:
            is_train: whether to keep the annotations.
            num_slices: D, odd.
            slice_interval: distance in mm between the slices the model sees.
            resampling: see :func:`load_slice_stack`.
            hu_window: see :func:`window_hu`.
            augmentations: Detectron2's or fvcore's; they get the image as (H, W, D) float32 in HU.
            use_instance_mask: whether to keep "segmentation" of the annotations (polygons or RLE) as gt_masks.
            mask_format: "polygon" or "bitmask", the format of gt_masks.
        """
        self.is_train = is_train
        self.num_slices = num_slices
        self.slice_interval = slice_interval
        self.resampling = resampling
        self.hu_window = hu_window
        self.augmentations = T.AugmentationList(augmentations)
        self.use_instance_mask = use_instance_mask
        self.mask_format = mask_format

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        augmentations = utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        if is_train and cfg.INPUT.AFFINE.PROB > 0:
            affine = cfg.INPUT.AFFINE
            augmentations.append(
                RandomAffine(affine.PROB, affine.SHIFT, affine.SCALE, affine.ROTATION, fill=cfg.INPUT.HU_WINDOW[0])
            )
        return {
            "is_train": is_train,
            "num_slices": cfg.MODEL.A3D.NUM_SLICES,
            "slice_interval": cfg.INPUT.SLICE_INTERVAL,
            "resampling": cfg.INPUT.RESAMPLING,
            "hu_window": cfg.INPUT.HU_WINDOW,
            "augmentations": augmentations,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "mask_format": cfg.INPUT.MASK_FORMAT,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: as :func:`load_deeplesion` makes it.

        Returns:
            the same dict with
                image: (D, H, W) float32 tensor.
                thickness (float): distance between the slices on disk in mm, however they were resampled. Where the
                    file says nothing usable the stack is one slice repeated, and any value is right: the distance that
                    the model is used to.
                instances: in training, instead of "annotations".

        Raises:
            FileNotFoundError, ValueError: see :func:`load_slice_stack`.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        interval = dataset_dict["slice_interval"]
        stack = load_slice_stack(
            dataset_dict["file_name"], self.num_slices, interval, self.slice_interval, self.resampling
        )
        dataset_dict["thickness"] = interval if 0 < interval < math.inf else self.slice_interval
        image = np.ascontiguousarray(stack.transpose(1, 2, 0))  # (D, H, W) -> (H, W, D)
        utils.check_image_size(dataset_dict, image)

        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image = window_hu(aug_input.image, self.hu_window).transpose(2, 0, 1)  # (H, W, D) -> (D, H, W)
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image))

        annotations = dataset_dict.pop("annotations", [])
        if self.is_train:
            dataset_dict["instances"] = self._instances(
                annotations, transforms, image.shape[1:], dataset_dict["file_name"]
            )
        return dataset_dict

    def _instances(
        self, annotations: list[dict], transforms: T.TransformList, image_size: tuple[int, int], file_name: str
    ) -> Instances:
        for annotation in annotations:
            annotation["bbox"] = [value + 0.5 for value in annotation["bbox"]]
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            elif "segmentation" not in annotation:
                if "recist" not in annotation:
                    raise ValueError(
                        f"{file_name}: MODEL.MASK_ON needs a 'segmentation' or 'recist' in every annotation. Got one "
                        f"with only {', '.join(annotation)}."
                    )
                # RECIST points name pixels as well; masks have no such shift to undo.
                annotation["segmentation"] = [recist_ellipse(annotation["recist"]).ravel() + 0.5]
        instances = utils.annotations_to_instances(
            [utils.transform_instance_annotations(a, transforms, image_size) for a in annotations],
            image_size,
            mask_format=self.mask_format,
        )
        instances = utils.filter_empty_instances(instances)
        instances.gt_boxes.tensor -= 0.5
        return instances
