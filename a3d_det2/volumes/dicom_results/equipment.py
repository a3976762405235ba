"""What made the results."""

from collections.abc import Mapping
from dataclasses import dataclass, field

MANUFACTURER = "a3d_det2"
LONGEST = 64  # characters


@dataclass(frozen=True)
class Algorithm:
    """What found the lesions.

    Attributes:
        name, version: of the software.
        parameters: such as the config and the SHA-256 of the weights.

    Raises:
        ValueError: if name or version have not from 1 to 64 characters, or a backslash, which DICOM has no place for.
    """

    name: str
    version: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("name", "version"):
            value = getattr(self, name)
            if not 1 <= len(value) <= LONGEST or "\\" in value:
                raise ValueError(f"Expected a {name} of 1 to {LONGEST} characters without a backslash, got {value!r}.")


def equipment(algorithm: Algorithm) -> dict[str, str]:
    """Attributes of what writes an object, as highdicom names them. It is no device, and has no serial number."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": algorithm.name,
        "software_versions": algorithm.version,
        "device_serial_number": "0",
    }
