"""Worker processes: of a data loader, and of a process pool."""

import multiprocessing
import os
import threading

import cv2


def turn_off_opencv_threads() -> None:
    """Let OpenCV use no threads, in this whole process and the workers it starts; called where a data loader is built.

    A thread of OpenCV's that holds its lock while a worker is forked is not in the worker, which then waits for ever;
    and there are as many workers as there shall be threads.
    """
    cv2.setNumThreads(0)


def start_worker() -> None:
    """Give a worker of a process pool one thread, and let it end when its parent is killed."""
    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
