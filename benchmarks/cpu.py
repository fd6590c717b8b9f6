"""How much CPU time a process has taken."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, of all its threads. Raises FileNotFoundError when there is none."""
    # the name in parentheses may hold spaces; utime and stime are the 14th and 15th field of all
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
