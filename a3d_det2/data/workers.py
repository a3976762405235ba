"""What the worker processes of a data loader ask of the process that forks them."""

import cv2


def turn_off_opencv_threads() -> None:
    """To be called where a data loader is built, for the whole process.

    A thread of OpenCV's that holds its lock while a worker is forked is not in the worker, which then waits for ever;
    and there are as many workers as there shall be threads.
    """
    cv2.setNumThreads(0)
