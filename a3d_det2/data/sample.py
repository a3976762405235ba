"""A dataset dict -> augmented, windowed slices, boxes and masks: what every engine trains and tests with."""

import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from fvcore.transforms.transform import Transform

from ..files import shortened
from ..segmentation import check_polygons, decode_mask, draw_polygons
from .mined import IGNORED, Mined, read_mined
from .once import LogOnce
from .png import HU_OFFSET, UnreadableSlice
from .recist import is_recist_box, transform_recist_box
from .slices import is_interval, load_slice_stack, resample_stack, window_hu
from .weak_masks import recist_ellipse

Augment = Callable[[np.ndarray], tuple[np.ndarray, Transform]]
Size = tuple[int, int]  # height, width
BOXES = ("recist", "corners")
SMALLEST_SIDE = 1e-5  # px, of a box that is kept; as Detectron2's filter_empty_instances


@dataclass(frozen=True)
class Sample:
    """What a detector trains and tests with: a stack of slices and the lesions on the middle one.

    Attributes:
        image: (D, H, W) float32, windowed.
        thickness: distance between the slices on disk in mm, however they were resampled. Where the dict says nothing
            usable the stack is one slice repeated, and any value is right: the distance that the model is used to.
        boxes: (n, 4) float32 XYXY; as in DeepLesion they name pixels, from the centre of the first to that of the last.
        classes: (n,) int64; ``IGNORED`` for a lesion that a detector shall learn neither to find nor not to find.
        masks: for each box (H, W) bool, or polygons, flat arrays of x and y; None without masks.
        original_size: (height, width) of the slices on disk.
    """

    image: np.ndarray
    thickness: float
    boxes: np.ndarray
    classes: np.ndarray
    masks: list | None
    original_size: Size


@dataclass(kw_only=True, eq=False)
class SampleLoader:
    """Makes samples of dataset dicts, as :func:`load_deeplesion` and :func:`.load_ct_coco` make them.

    1. Load the key slice and its neighbours, resampled along z, in HU; a damaged neighbour is replaced and logged. The
       "read_stack" of a dict, if there is one, is called with the dict, and gives slices (S, H, W) in HU and which of
       them is the key slice.
    2. Augment image, boxes, masks and RECIST points together. DeepLesion's boxes and points name pixels (0 is the
       centre of the first), while transforms take continuous coordinates (0 is its edge): they are shifted by half a
       pixel and back. A box that was made of RECIST points is made again of the transformed ones.
    3. Window the HU values; with ``window_first`` before anything is augmented.
    4. In training, keep the lesions that are still in the image, and no crowds. A lesion without a mask gets the
       outline through its RECIST axes.
    5. In training, add what was mined: as a lesion with the probability ``mined_weight``, so that on average it has
       this weight, and else as one that is ignored.

    Args:
        is_train: whether to keep the annotations.
        num_slices: D, odd.
        slice_interval: distance in mm between the slices the model sees.
        hu_window: see :func:`window_hu`.
        resampling: see :func:`load_slice_stack`.
        use_instance_mask: whether to make masks, of "segmentation" (polygons or RLE) or "recist".
        mask_format: "polygon" or "bitmask"; "polygon" cannot take RLE.
        unreadable_key_slice: "error", or "skip", which in training returns None and logs it.
        window_first: whether to augment windowed slices, as published, rather than HU.
        boxes: "recist" as above, or "corners" for what encloses the transformed corners of each box, as published.
        mined: lesions that nobody has annotated, see :func:`.read_mined`; None has none.
        mined_weight: of these, from 0 to 1.

    Raises:
        ValueError: on another ``unreadable_key_slice``, ``mask_format`` or ``boxes``.
    """

    is_train: bool
    num_slices: int
    slice_interval: float
    hu_window: tuple[float, float]
    resampling: str = "linear"
    use_instance_mask: bool = False
    mask_format: str = "bitmask"
    unreadable_key_slice: str = "error"
    window_first: bool = False
    boxes: str = "recist"
    mined: Mined | None = None
    mined_weight: float = 0.0

    def __post_init__(self):
        allowed = {"unreadable_key_slice": ("error", "skip"), "mask_format": ("polygon", "bitmask"), "boxes": BOXES}
        for name, choices in allowed.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"Unknown {name} {value!r}. Choose one of {', '.join(choices)}.")
        logger = logging.getLogger(__name__)
        self._on_damage = LogOnce(logger)
        self._skipped = LogOnce(logger)
        self._constant = LogOnce(logger)

    def __call__(
        self, record: dict, augment: Augment, uniform: Callable[[], float] = np.random.random
    ) -> Sample | None:
        """Make a sample.

        Args:
            record: as :func:`load_deeplesion` makes it; one without annotations has no lesions.
            augment: takes the image as (H, W, D) float32 in HU, or windowed, and gives it transformed, with what did
                it.
            uniform: draws random numbers from [0, 1).

        Returns:
            None, in training and with ``unreadable_key_slice="skip"``, if the key slice cannot be read.

        Raises:
            FileNotFoundError, UnreadableSlice: see :func:`load_slice_stack`; also if the key slice has another size
                than the dict says.
            ValueError: if the dict has no slice_interval, its "read_stack" gives no slices, masks are asked for and a
                lesion has nothing to make one of, or one that does not fit, or what was mined is of other key slices.
        """
        try:
            stack = self._load(record)
        except (FileNotFoundError, UnreadableSlice) as error:
            if not self.is_train or self.unreadable_key_slice == "error":
                raise
            self._skipped(
                record["file_name"], f"{error} Skipped: key slice {self._skipped.count() + 1} that is unreadable."
            )
            return None
        original_size = stack.shape[1:]
        if self.window_first:
            window_hu(stack, self.hu_window, out=stack)
        # (D, H, W) -> (H, W, D), a view of memory in which each slice is contiguous, and back.
        augmented, transform = augment(stack.transpose(1, 2, 0))
        augmented = augmented.transpose(2, 0, 1)
        if self.window_first:
            image = np.ascontiguousarray(augmented, dtype=np.float32)
        else:
            image = window_hu(augmented, self.hu_window, out=np.empty(augmented.shape, dtype=np.float32))
        key_slice = image[len(image) // 2]
        if key_slice.size and np.ptp(key_slice) == 0:
            self._constant(
                record["file_name"],
                f"{record['file_name']}: all pixels are {key_slice.flat[0]:g} within the window {self.hu_window} HU. "
                "Is the offset of its HU another one, or the window?",
            )
        interval = record["slice_interval"]
        thickness = interval if is_interval(interval) else self.slice_interval
        annotations = [*record.get("annotations", ()), *self._mined(record, uniform)] if self.is_train else []
        lesions = self._lesions(record, annotations, transform, original_size, image.shape[1:])
        return Sample(image, thickness, *lesions, original_size)

    def _load(self, record: dict) -> np.ndarray:
        if "slice_interval" not in record:
            raise ValueError(
                f"{record['file_name']}: expected a dict with 'slice_interval', the distance between slices on disk in "
                f"mm (NaN where it is not known), got one with {', '.join(record)}."
            )
        how = self.num_slices, record["slice_interval"], self.slice_interval, self.resampling
        if read_stack := record.get("read_stack"):
            stack = resample_stack(*_checked_stack(read_stack(record), record), *how)
            if not np.isfinite(stack).all():
                raise ValueError(
                    f"{record['file_name']}: expected of read_stack HU, got values that are no finite numbers"
                )
        else:
            stack = load_slice_stack(
                record["file_name"],
                *how,
                slice_range=record.get("slice_range"),
                on_damage=self._on_damage,
                hu_offset=record.get("hu_offset", HU_OFFSET),
                number_pattern=record.get("number_pattern"),
            )
        size = stack.shape[1:]
        expected = (record.get("height", size[0]), record.get("width", size[1]))
        if size != expected:
            raise UnreadableSlice(f"{record['file_name']}: expected the height and width {expected}, got {size}.")
        return stack

    def _mined(self, record: dict, uniform: Callable[[], float]) -> list[dict]:
        """Annotations of what was mined on a key slice."""
        if self.mined is None:
            return []
        if record["image_id"] not in self.mined:
            raise ValueError(
                f"{record['file_name']}: expected {record['image_id']} among the {len(self.mined)} key slices of "
                "DATASETS.MINED, got none of this name: was it made for another dataset?"
            )
        annotations = []
        for lesion in self.mined[record["image_id"]]:
            category = lesion["category_id"] if uniform() < self.mined_weight else IGNORED
            x1, y1, x2, y2 = lesion["bbox"]
            middle = (x1 + x2) / 2, (y1 + y2) / 2
            axes = [[x1, middle[1]], [x2, middle[1]], [middle[0], y1], [middle[0], y2]]  # of the ellipse in its box
            mask = (recist_ellipse(axes) + 0.5).ravel()
            annotations.append({"bbox": lesion["bbox"], "category_id": category, "segmentation": [mask]})
        return annotations

    def _lesions(
        self, record: dict, annotations: list[dict], transform: Transform, original_size: Size, image_size: Size
    ) -> tuple[np.ndarray, np.ndarray, list | None]:
        boxes, classes, masks = [], [], []
        for annotation in annotations:
            if annotation.get("iscrowd"):  # as in Detectron2's own mapper
                continue
            box = self._box(annotation, transform, original_size, image_size)
            if min(box[2:] - box[:2]) <= SMALLEST_SIDE:
                continue
            try:
                mask = self._mask(annotation, transform, original_size, image_size)
            except ValueError as error:
                raise ValueError(f"{record['file_name']}: {error}.") from error
            if isinstance(mask, np.ndarray) and not mask.any():
                continue
            boxes.append(box)
            classes.append(annotation["category_id"])
            masks.append(mask)
        boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        return boxes, np.array(classes, dtype=np.int64), masks if self.use_instance_mask else None

    def _box(self, annotation: dict, transform: Transform, original_size: Size, image_size: Size) -> np.ndarray:
        """Move the box of a lesion as the image was: (4,) float32 XYXY, clipped from the centre of the first pixel to
        that of the last."""
        box, recist = np.array(annotation["bbox"], dtype=np.float64), annotation.get("recist")
        is_remade = self.boxes == "recist" and recist is not None
        if is_remade and is_recist_box(box, recist, original_size):
            moved = transform_recist_box(np.array(recist) + 0.5, transform.apply_coords)
        else:
            moved = transform.apply_box(box[None] + 0.5)[0]
        return np.clip(moved - 0.5, 0, np.array([*image_size[::-1]] * 2) - 1).astype(np.float32)

    def _mask(
        self, annotation: dict, transform: Transform, original_size: Size, image_size: Size
    ) -> np.ndarray | list[np.ndarray] | None:
        if not self.use_instance_mask:
            return None
        mask = annotation.get("segmentation")
        if isinstance(mask, dict):
            if self.mask_format == "polygon":
                raise ValueError(
                    "its masks are run-length encoded: expected INPUT.MASK_FORMAT 'bitmask', got 'polygon'"
                )
            return transform.apply_segmentation(decode_mask(mask, *original_size).astype(np.uint8)).astype(bool)
        if mask == []:
            return np.zeros(image_size, dtype=bool)
        if mask is None:
            mask = [self._outline(annotation).ravel()]
        check_polygons(mask)
        polygons = transform.apply_polygons([np.array(p, dtype=np.float64).reshape(-1, 2) for p in mask])
        polygons = [polygon.ravel() for polygon in polygons]
        return polygons if self.mask_format == "polygon" else draw_polygons(polygons, *image_size)

    def _outline(self, annotation: dict) -> np.ndarray:
        if "recist" not in annotation:
            raise ValueError(
                "MODEL.MASK_ON needs a 'segmentation' or 'recist' in every annotation. Got one with only "
                f"{', '.join(annotation)}"
            )
        # The points name pixels as boxes do; masks have no such shift to undo.
        return recist_ellipse(annotation["recist"]) + 0.5


def _checked_stack(given, record: dict) -> tuple[np.ndarray, int]:
    """What the "read_stack" of a dict has given.

    Raises:
        ValueError: unless it is slices, (S, H, W), and the number of one of them.
    """
    try:
        slices, key = given
        slices, key = np.asarray(slices), operator.index(key)
        is_stack = slices.ndim == 3 and 0 <= key < len(slices) and slices.dtype.kind in "biuf"
    except (TypeError, ValueError):
        is_stack = False
    if not is_stack:
        raise ValueError(
            f"{record['file_name']}: expected of read_stack slices in HU, (S, H, W), and which of them is the key "
            f"slice, got {shortened(given)}."
        )
    return slices, key


def sample_options(cfg, is_train: bool) -> dict:
    """Read the arguments of a :class:`SampleLoader` from a config.

    Raises:
        FileNotFoundError, ValueError: see :func:`.read_mined`.
    """
    return {
        "is_train": is_train,
        "num_slices": cfg.MODEL.A3D.NUM_SLICES,
        "slice_interval": cfg.INPUT.SLICE_INTERVAL,
        "resampling": cfg.INPUT.RESAMPLING,
        "hu_window": cfg.INPUT.HU_WINDOW,
        "use_instance_mask": cfg.MODEL.MASK_ON,
        "mask_format": cfg.INPUT.MASK_FORMAT,
        "unreadable_key_slice": cfg.INPUT.UNREADABLE_KEY_SLICE,
        "window_first": cfg.INPUT.AFFINE.ORDER == "first",
        "boxes": cfg.INPUT.AFFINE.BOXES,
        "mined": read_mined(cfg.DATASETS.MINED) if is_train and cfg.DATASETS.MINED else None,
        "mined_weight": cfg.DATASETS.MINED_WEIGHT,
    }


def affine_fill(cfg) -> float:
    """The value of air where the affine map looks beyond the image: in HU, or windowed where it comes first."""
    return -50.0 if cfg.INPUT.AFFINE.ORDER == "first" else cfg.INPUT.HU_WINDOW[0]
