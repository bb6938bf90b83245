"""Peak memory of this process. Not in `setting.py`, whose imports alone would be a good part of what some scripts measure."""

import resource
from pathlib import Path


def peak_gb() -> float:
    """The most memory this program has held (GB); `ru_maxrss` would begin with what the parent held when it started this."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # macOS counts bytes
