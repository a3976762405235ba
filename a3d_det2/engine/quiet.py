"""Libraries that quote names of patients in what they print."""

import logging
import warnings

LIBRARIES = ("pydicom", "highdicom")


def hide_patient_names() -> None:
    """Let them print errors alone, in this process."""
    for library in LIBRARIES:
        warnings.filterwarnings("ignore", module=library)
        logging.getLogger(library).setLevel(logging.ERROR)
