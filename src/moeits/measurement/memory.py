"""Memory of this process, in bytes, wherever it runs; None where the operating system does not say."""

import sys
from pathlib import Path
from typing import Any


def resident_bytes() -> int | None:
    """What the process holds now."""
    return _status("VmRSS")


def peak_bytes(device: Any = None) -> int | None:
    """The most memory so far: of a CUDA device if one is given, else of this process."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    # On Linux ru_maxrss also counts the process that this one was forked from.
    return _status("VmHWM") or _most_resident()


def forget_peak() -> bool:
    """Let the peak of this process begin again at what it holds now; False where the system cannot (all but Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _most_resident() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, the other systems in KiB.
    return most if sys.platform == "darwin" else most * 1024


def _status(name: str) -> int | None:
    """A line of /proc/self/status in bytes; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
