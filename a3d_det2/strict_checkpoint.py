from .checkpoint.strict import StrictCheckpointer  # noqa: F401 - an old path
