from .preparation.archives import *  # noqa: F403
