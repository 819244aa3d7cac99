"""Whether a process still works on a file: the system drops a lock with the process that holds it, however it ends."""

from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: BinaryIO) -> bool:
    """Take the lock of an open file without waiting; whether it was to be had. It goes when the file is closed.

    Where the system or the disk knows no such locks nothing is held, and every lock is to be had.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks
        return True
    return True


def can_tell() -> bool:
    """Whether locks work here at all: without them nothing is taken for left over."""
    return fcntl is not None
