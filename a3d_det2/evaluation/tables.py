"""Another name of :mod:`.report.tables`."""

from .report.tables import *  # noqa: F403
