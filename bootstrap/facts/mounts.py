"""Which file system a path lies on, by ``/proc/mounts``."""

from __future__ import annotations

import re
from pathlib import Path


def read() -> str:
    """The table; empty where there is none."""
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def kind(path: str, table: str) -> str:
    """The type of the file system mounted at, or nearest above, ``path``; the last mounted hides those before."""
    best, found = -1, ""
    for line in table.splitlines():
        words = line.split(" ")
        if len(words) < 3:
            continue
        # Spaces and the like are octal there: \040.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[1])
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= best:
            best, found = len(point), words[2]
    return found
