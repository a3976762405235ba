"""Views of a stack of slices, flipped and scaled, and the way back of what was found in them."""

import re
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ..volumes.predictor import Found

_PART = re.compile(r"hflip|vflip|x(?P<scale>\d+(\.\d+)?)")
Size = tuple[int, int]  # height, width


class View(NamedTuple):
    """A view.

    Attributes:
        horizontal, vertical: whether left and right, top and bottom change places.
        scale: of height and width.
    """

    horizontal: bool = False
    vertical: bool = False
    scale: float = 1.0

    @classmethod
    def named(cls, name: str) -> "View":
        """The view of a name: "hflip", "vflip", "x1.25", or several of these, as in "hflip+x0.8".

        Raises:
            ValueError: if it is none.
        """
        parts = [_PART.fullmatch(part) for part in name.split("+")]
        kinds = [part and part[0][0] for part in parts]
        scales = [float(part["scale"]) for part in parts if part and part["scale"]]
        if None in kinds or len(set(kinds)) < len(kinds) or not all(0.1 <= scale <= 10 for scale in scales):
            raise ValueError(
                f"Expected a view such as 'hflip', 'vflip', 'x1.25' (0.1 to 10) or 'hflip+vflip+x0.8', got {name!r}."
            )
        return cls("h" in kinds, "v" in kinds, *scales)

    def of(self, image: Tensor) -> Tensor:
        """(D, H, W) -> (D, h, w)"""
        if self.scale != 1:
            height, width = image.shape[-2:]
            size = max(round(self.scale * height), 1), max(round(self.scale * width), 1)
            image = F.interpolate(image[None], size, mode="bilinear", antialias=self.scale < 1)[0]
        sides = [axis for axis, flipped in ((-2, self.vertical), (-1, self.horizontal)) if flipped]
        return image.flip(sides) if sides else image

    def undo(self, found: Found, seen: Size, image: Size, size: Size) -> Found:
        """Find the places in the image as it is of what was found in the view.

        Boxes name pixels, 0 is the centre of the first one: flipped, what was first is last, and scaled, the centre of
        the first pixel is half a pixel from the edge in either.

        Args:
            found: in pixels of ``size``, to which a detector has scaled the boxes it saw by ``size / seen``.
            seen: of the view.
            image: of the image that it is a view of.
            size: of the result, such as of the slices on disk.
        """
        boxes, masks = found.boxes.astype(np.float64), found.masks
        for axis, is_flipped in ((0, self.horizontal), (1, self.vertical)):
            pixel, length = size[1 - axis] / image[1 - axis], size[1 - axis]  # of the result: a pixel of the image
            boxes[:, axis::2] += length / seen[1 - axis] / 2 - pixel / 2
            if is_flipped:
                boxes[:, axis::2] = (length - pixel - boxes[:, axis::2])[:, ::-1]
                masks = None if masks is None else np.flip(masks, 2 - axis)
        return found._replace(boxes=boxes, masks=masks)
