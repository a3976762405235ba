from .preparation import *  # noqa: F403
