import copy
import logging
import math

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances

from .augmentation import RandomAffine, RandomHUJitter, ResizeIfNeeded
from .once import OncePerFile
from .png import UnreadableSlice
from .recist import is_recist_box, transform_recist_box
from .slices import load_slice_stack, window_hu
from .weak_masks import recist_ellipse


class DeepLesionMapper:
    """A DeepLesion dataset dict -> what the model takes; one class for training and testing.

    1. Load the key slice and its neighbours, resampled along z, in HU; a damaged neighbour is replaced and logged.
    2. Augment image, boxes, masks and RECIST points together. DeepLesion's boxes and points name pixels (0 is the
       centre of the first), while transforms take continuous coordinates (0 is its edge): they are shifted by half a
       pixel and back. A box that was made of RECIST points is made again of the transformed ones.
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
        mask_format: str = "bitmask",
        unreadable_key_slice: str = "error",
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
            mask_format: "polygon" or "bitmask", the format of gt_masks; "polygon" cannot take RLE.
            unreadable_key_slice: "error", or "skip", which in training returns None and logs it.

        Raises:
            ValueError: on another ``unreadable_key_slice``.
        """
        if unreadable_key_slice not in ("error", "skip"):
            raise ValueError(f"Unknown unreadable_key_slice {unreadable_key_slice!r}. Choose one of error, skip.")
        self.is_train = is_train
        self.num_slices = num_slices
        self.slice_interval = slice_interval
        self.resampling = resampling
        self.hu_window = hu_window
        self.augmentations = T.AugmentationList(augmentations)
        self.use_instance_mask = use_instance_mask
        self.mask_format = mask_format
        self.unreadable_key_slice = unreadable_key_slice
        logger = logging.getLogger(__name__)
        self._on_damage = OncePerFile(logger)
        self._skipped = OncePerFile(logger)

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        augmentations = [
            ResizeIfNeeded(augmentation) if isinstance(augmentation, T.ResizeShortestEdge) else augmentation
            for augmentation in utils.build_augmentation(cfg, is_train)
        ]
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        if is_train and cfg.INPUT.AFFINE.PROB > 0:
            affine = cfg.INPUT.AFFINE
            augmentations.append(
                RandomAffine(affine.PROB, affine.SHIFT, affine.SCALE, affine.ROTATION, fill=cfg.INPUT.HU_WINDOW[0])
            )
        if is_train and cfg.INPUT.HU_JITTER.PROB > 0:
            jitter = cfg.INPUT.HU_JITTER
            augmentations.append(RandomHUJitter(jitter.PROB, jitter.OFFSET, jitter.GAIN))
        return {
            "is_train": is_train,
            "num_slices": cfg.MODEL.A3D.NUM_SLICES,
            "slice_interval": cfg.INPUT.SLICE_INTERVAL,
            "resampling": cfg.INPUT.RESAMPLING,
            "hu_window": cfg.INPUT.HU_WINDOW,
            "augmentations": augmentations,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "mask_format": cfg.INPUT.MASK_FORMAT,
            "unreadable_key_slice": cfg.INPUT.UNREADABLE_KEY_SLICE,
        }

    def __call__(self, dataset_dict: dict) -> dict | None:
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
            None, in training and with ``unreadable_key_slice="skip"``, if the key slice cannot be read; Detectron2's
            data loader then takes another sample.

        Raises:
            FileNotFoundError, UnreadableSlice: see :func:`load_slice_stack`.
            SizeMismatchError: of Detectron2, if the key slice has another size than the dict says.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        interval = dataset_dict["slice_interval"]
        try:
            image = self._load(dataset_dict)
        except (FileNotFoundError, UnreadableSlice, utils.SizeMismatchError) as error:
            if not self.is_train or self.unreadable_key_slice == "error":
                raise
            self._skipped(
                dataset_dict["file_name"], f"{error} Skipped: key slice {self._skipped.count() + 1} that is unreadable."
            )
            return None
        dataset_dict["thickness"] = interval if 0 < interval < math.inf else self.slice_interval

        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image = aug_input.image.transpose(2, 0, 1)  # (H, W, D) -> (D, H, W)
        dataset_dict["image"] = torch.empty(image.shape)
        window_hu(image, self.hu_window, out=dataset_dict["image"].numpy())

        annotations = dataset_dict.pop("annotations", [])
        if self.is_train:
            dataset_dict["instances"] = self._instances(annotations, transforms, image.shape[1:], dataset_dict)
        return dataset_dict

    def _load(self, dataset_dict: dict) -> np.ndarray:
        """The slices as (H, W, D), a view of memory in which each slice is contiguous."""
        stack = load_slice_stack(
            dataset_dict["file_name"],
            self.num_slices,
            dataset_dict["slice_interval"],
            self.slice_interval,
            self.resampling,
            slice_range=dataset_dict.get("slice_range"),
            on_damage=self._on_damage,
        )
        image = stack.transpose(1, 2, 0)
        utils.check_image_size(dataset_dict, image)
        return image

    def _instances(
        self, annotations: list[dict], transforms: T.TransformList, image_size: tuple[int, int], dataset_dict: dict
    ) -> Instances:
        for annotation in annotations:
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            elif "segmentation" not in annotation:
                annotation["segmentation"] = self._outline(annotation, dataset_dict["file_name"])
            self._check_mask(annotation, dataset_dict)
            self._transform(annotation, transforms, image_size, (dataset_dict["height"], dataset_dict["width"]))
        instances = utils.annotations_to_instances(annotations, image_size, mask_format=self.mask_format)
        instances = utils.filter_empty_instances(instances)
        instances.gt_boxes.tensor -= 0.5
        return instances

    def _outline(self, annotation: dict, file_name: str) -> list[np.ndarray]:
        if "recist" not in annotation:
            raise ValueError(
                f"{file_name}: MODEL.MASK_ON needs a 'segmentation' or 'recist' in every annotation. Got one with only "
                f"{', '.join(annotation)}."
            )
        # The points name pixels as boxes do; masks have no such shift to undo.
        return [recist_ellipse(annotation["recist"]).ravel() + 0.5]

    def _check_mask(self, annotation: dict, dataset_dict: dict) -> None:
        mask, image_size = annotation.get("segmentation"), (dataset_dict["height"], dataset_dict["width"])
        if not isinstance(mask, dict):
            return
        if self.mask_format == "polygon":
            raise ValueError(
                f"{dataset_dict['file_name']}: its masks are run-length encoded; set INPUT.MASK_FORMAT to 'bitmask'. "
                "Got 'polygon' instead!"
            )
        size = tuple(mask["size"])
        if size != image_size:
            raise ValueError(
                f"{dataset_dict['file_name']}: expected masks of its size {image_size}, got one of {size}."
            )

    def _transform(
        self,
        annotation: dict,
        transforms: T.TransformList,
        image_size: tuple[int, int],
        original_size: tuple[int, int],
    ) -> None:
        """Move box and mask, in place; the box keeps the half pixel that it was shifted by."""
        box = np.array(BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS))
        annotation["bbox"], annotation["bbox_mode"] = box + 0.5, BoxMode.XYXY_ABS
        utils.transform_instance_annotations(annotation, transforms, image_size)
        recist = annotation.get("recist")
        if recist is not None and is_recist_box(box, recist, original_size):
            annotation["bbox"] = transform_recist_box(np.array(recist) + 0.5, transforms.apply_coords)
        # From the centre of the first pixel to that of the last.
        annotation["bbox"] = np.clip(annotation["bbox"], 0.5, np.array([*image_size[::-1]] * 2) - 0.5)
