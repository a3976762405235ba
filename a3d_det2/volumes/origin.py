"""The DICOM images that the slices of a volume are, for what is made of it to refer to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a volume lies in an archive, and its geometry as it is stored, by slices from head to feet.

    Attributes:
        sop_class: UID of what the images are, such as CT Image Storage; "" if they are not all the same.
        series: UID.
        instances: UID of each slice's image; of a multi-frame image the same for each.
        frames: number of each slice within a multi-frame image, from 0; None of single images.
        size: (rows, columns).
        pixel: mm between rows and between columns.
        directions: (2, 3), that of increasing column and of increasing row, LPS.
        positions: (D, 3), centre of the first pixel of each slice, LPS, mm.
        attributes: of patient, study and series, by their names in DICOM: what the images say, more than one entry if
            they differ; an entry has more than one value if the attribute has.
    """

    sop_class: str
    series: str
    instances: tuple[str, ...]
    frames: tuple[int, ...] | None
    size: tuple[int, int]
    pixel: tuple[float, float]
    directions: np.ndarray
    positions: np.ndarray
    attributes: Mapping[str, Sequence[tuple[str, ...]]] = field(default_factory=dict)

    def value(self, name: str) -> str:
        """The first value of an attribute; "" if there is none."""
        return self.attributes[name][0][0] if name in self.attributes else ""
