from . import FusedTrunk, SqueezedTrunk  # noqa: F401 - an old path
