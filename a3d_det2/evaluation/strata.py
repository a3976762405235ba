"""Parts of a split by slice thickness, lesion size and type, and the key slice's place in its series."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..files import slice_number


@dataclass(frozen=True)
class Stratum:
    """A part of a split: what counts, see :meth:`.Matches.select`.

    Attributes:
        images: (num_images,) bool, or None for all.
        lesions: (num_lesions,) bool, or None for all of these images.
    """

    images: np.ndarray | None = None
    lesions: np.ndarray | None = None


def build_strata(
    images: list[dict], lesion_types: Mapping[int, str] | None = None, context: float = 6.0
) -> dict[str, dict[str, Stratum]]:
    """Divide a split into strata.

    What an image or lesion does not tell puts it in no stratum, and a group of which nothing is known is left out.

    Args:
        images: dataset dicts as :func:`load_deeplesion` makes them; of slice_interval, slice_range, spacing, diameters
            and lesion_type any may be missing. The lesions are their annotations, one image after the other.
        lesion_types: name of each lesion_type; None leaves that group out.
        context: mm from the key slice; 6 is how far 7 slices of 2 mm reach.

    Returns:
        group -> name -> stratum:
            "slice thickness": up to and above 2 mm, and exactly 5 mm, half of DeepLesion; images with their false
                positives.
            "lesion diameter": RECIST long diameter below 10, 10 to 30 and above 30 mm. The lesions are chosen and the
                false positives are those of all images, as the dataset's author does it.
            "lesion type": likewise.
            "end of series": whether the series ends, on either side, less than ``context`` from the key slice, so that
                slices have to be made up; images with their false positives.
    """
    thickness = np.array([_positive(image.get("slice_interval")) for image in images], dtype=np.float64)
    to_end = np.array([_distance_to_end(image) for image in images], dtype=np.float64)
    lesions = [(image, lesion) for image in images for lesion in image.get("annotations", ())]
    diameter = np.array([long_diameter(image, lesion) for image, lesion in lesions], dtype=np.float64)
    kind = np.array([lesion.get("lesion_type", -1) for _, lesion in lesions], dtype=np.int64)
    groups = {
        "slice thickness": {
            "<= 2 mm": Stratum(thickness <= 2),
            "> 2 mm": Stratum(thickness > 2),
            "5 mm": Stratum(np.isclose(thickness, 5)),
        },
        "lesion diameter": {
            "< 10 mm": Stratum(lesions=diameter < 10),
            "10 to 30 mm": Stratum(lesions=(diameter >= 10) & (diameter <= 30)),
            "> 30 mm": Stratum(lesions=diameter > 30),
        },
        "lesion type": {name: Stratum(lesions=kind == number) for number, name in (lesion_types or {}).items()},
        "end of series": {
            f"< {context:g} mm away": Stratum(to_end < context),
            f">= {context:g} mm away": Stratum(to_end >= context),
        },
    }
    return {group: strata for group, strata in groups.items() if any(map(_has_any, strata.values()))}


def long_diameter(image: dict, lesion: dict) -> float:
    """RECIST long diameter in mm; NaN where it is not known."""
    if "diameters" not in lesion or "spacing" not in image:
        return np.nan
    return _positive(lesion["diameters"][0]) * _positive(image["spacing"][0])


def _distance_to_end(image: dict) -> float:
    """mm from the key slice, ``NNN.png``, to the nearer end of its series; NaN where it is not known."""
    number = slice_number(image.get("file_name", ""))
    if not image.get("slice_range") or number is None:
        return np.nan
    first, last = image["slice_range"]
    slices = min(number - first, last - number)
    return slices * _positive(image.get("slice_interval")) if slices >= 0 else np.nan


def _positive(value: float | None) -> float:
    return value if value is not None and 0 < value < np.inf else np.nan


def _has_any(stratum: Stratum) -> bool:
    return any(mask is not None and mask.any() for mask in (stratum.images, stratum.lesions))
