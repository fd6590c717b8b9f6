"""Reads the CPU time of a process."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """Returns the user and system time that all threads of a process have used. Raises FileNotFoundError when there is
    no such process."""
    # the name in parentheses may contain spaces; utime and stime are fields 14 and 15 of the whole line
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
