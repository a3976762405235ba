"""How large the detector sees the slices of a volume."""

# The sides of the squares that DeepLesion's slices show, in mm: those of its test split are 350 to 500 for 90 %, and
# 300 or more for 96 %. The upper limit is a pixel of 1 mm on 512 pixels.
FIELDS_OF_VIEW = (300.0, 512.0)
USUAL_FIELD_OF_VIEW = 400.0


def network_size(size: tuple[int, int], spacing: tuple[float, float], min_size: int, max_size: int) -> tuple[int, int]:
    """Choose the size to which slices are resized, so that the detector sees them as in training.

    1. Whole slices, squares of 300 to 512 mm, get the size of an evaluation, whatever their pixels; so do smaller ones
       that have it already.
    2. What was cut out of a slice, with pixels that are 1 / min_size of 300 to 512 mm, stays as it is.
    3. Of everything else a pixel becomes 1 / min_size of 400 mm.

    Args:
        size: (height, width) of the slices in pixels.
        spacing: between rows and between columns, in mm.
        min_size: length that the shorter side had in training (INPUT.MIN_SIZE_TEST); 0 is any, and nothing is resized.
        max_size: the longest that the longer side had.

    Returns:
        (height, width).
    """
    if not min_size:
        return size
    factor = min(min_size / min(size), max_size / max(size))
    evaluated = int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)
    low, high = FIELDS_OF_VIEW
    field = max(length * step for length, step in zip(size, spacing, strict=True))
    is_square = size[0] == size[1] and abs(spacing[0] - spacing[1]) < 0.01 * spacing[0]
    if is_square and (low <= field <= high or (evaluated == size and field <= high)):
        return evaluated
    pixel = min(spacing)
    if not low <= pixel * min_size <= high:
        pixel = USUAL_FIELD_OF_VIEW / min_size
    height, width = (max(1, int(length * step / pixel + 0.5)) for length, step in zip(size, spacing, strict=True))
    return height, width
