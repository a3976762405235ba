from .report.tables import *  # noqa: F403 - an old path
