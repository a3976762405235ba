"""What made the results."""

from collections.abc import Mapping
from dataclasses import dataclass, field

MANUFACTURER = "a3d_det2"


@dataclass(frozen=True)
class Algorithm:
    """What found the lesions.

    Attributes:
        name, version: of the software.
        parameters: such as the config and the SHA-256 of the weights.
    """

    name: str
    version: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def equipment(algorithm: Algorithm) -> dict[str, str]:
    """Attributes of what writes an object, as highdicom names them. It is no device, and has no serial number."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": algorithm.name,
        "software_versions": algorithm.version,
        "device_serial_number": "0",
    }
