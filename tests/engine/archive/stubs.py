"""Work on items that goes wrong as their paths say."""

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

from a3d_det2.engine.archive.manifest import Item
from a3d_det2.engine.archive.store import OutputError
from a3d_det2.engine.mistakes import Mistake


class Stub:
    """See :class:`a3d_det2.engine.archive.work.Task`. ``broken`` is what is wrong with the model. A path is a folder
    for notes and, as its last part, what happens:

    read_dies, read_hangs, read_fails, odd_message, dies, dies_once, hangs_once, fails, no_memory, little_memory, full,
    slow; anything else is well.
    """

    def __init__(self, run="run 1", broken=""):
        self.run, self.broken, self.batch = run, broken, 2
        self.how = {"kind": "stub"}

    def read(self, item: Item) -> str:
        folder, what = os.path.split(item.path)
        with open(os.path.join(folder, "reads.txt"), "a") as f:
            f.write(f"{item.id}\n")
        if what == "read_dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "read_hangs":
            time.sleep(1000)
        if what == "read_fails":
            raise ValueError(f"{item.path}: no volume")
        return item.path

    def wants_gpu(self) -> bool:
        return False

    def build(self, index: int) -> "Stub":
        if self.broken == "mistake":
            raise Mistake("no such weights")
        if self.broken == "dies":
            os._exit(7)
        self.index = index
        return self

    def __call__(self, path: str, folder: str) -> dict:
        notes, what = os.path.split(path)
        Path(folder, "half.txt").write_text("half")
        marker = Path(notes, "died")
        if what == "dies" or (what == "dies_once" and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "odd_message":
            raise ValueError("no such file: \udcff.nii")
        if self.broken == "first" and self.index == 0:
            os._exit(9)
        if what == "hangs_once" and not marker.exists():
            marker.touch()
            time.sleep(1000)
        if what == "fails":
            raise RuntimeError("something is wrong")
        if what == "no_memory" or (what == "little_memory" and self.batch > 1):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes.")
        if what == "full":
            raise OutputError(f"{folder}: the results cannot be written (No space left on device)")
        if what == "slow":
            time.sleep(0.5)
        Path(folder, "half.txt").rename(Path(folder, "whole.txt"))
        return {"batch": self.batch}

    def with_less_memory(self):
        return self._smaller() if self.batch > 1 else None

    @contextmanager
    def _smaller(self):
        self.batch //= 2
        try:
            yield
        finally:
            self.batch *= 2
