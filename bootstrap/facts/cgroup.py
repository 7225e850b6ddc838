"""What the control groups of this process allow: memory and processes, versions 1 and 2 (``man 7 cgroups``)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

SYS = Path("/sys/fs/cgroup")


@functools.lru_cache(maxsize=4)
def own(file: Path = Path("/proc/self/cgroup")) -> tuple[str, ...]:
    """The lines of ``/proc/self/cgroup``; none where there are no control groups."""
    try:
        return tuple(file.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return ()


def folders(controller: str, lines: tuple[str, ...], root: Path = SYS) -> Iterator[Path]:
    """The control groups of this process that may limit ``controller``, the innermost first, up to the root.

    In a container the paths of ``/proc/self/cgroup`` may be the host's, which are not mounted: what is not there is
    passed over by who reads.
    """
    for line in lines:
        number, _colon, rest = line.partition(":")
        names, _colon, path = rest.partition(":")
        if number == "0" and not names:
            mount = root
        elif controller in names.split(","):
            mount = root / controller
        else:
            continue
        inner = mount / path.strip("/")
        yield inner
        if inner != mount:
            yield from (folder for folder in inner.parents if folder == mount or mount in folder.parents)


def memory(lines: tuple[str, ...], root: Path = SYS) -> list[tuple[int, int | None]]:
    """Each limit on memory and what is used of it, in bytes. Page cache, which is given back, is not counted as used.

    ``None`` is a use that cannot be read.
    """
    found = []
    for folder in folders("memory", lines, root):
        for limit_file, used_file, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            limit = _number(folder / limit_file)
            if limit is None:
                continue
            used = _number(folder / used_file)
            if used is not None:
                cache = _stat(folder / "memory.stat")
                used -= cache.get(f"{prefix}inactive_file", 0) + cache.get(f"{prefix}active_file", 0)
                used = max(0, used)
            found.append((limit, used))
    return found


def processes(lines: tuple[str, ...], root: Path = SYS) -> int:
    """The most processes and threads that the control groups allow; -1 is no limit."""
    limits = [_number(folder / "pids.max") for folder in folders("pids", lines, root)]
    return min((limit for limit in limits if limit is not None), default=-1)


def _number(file: Path) -> int | None:
    """The number in ``file``; ``None`` for ``max`` and for what cannot be read."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _stat(file: Path) -> dict[str, int]:
    try:
        lines = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
        return {words[0]: int(words[1]) for words in lines if len(words) == 2}
    except (OSError, ValueError):
        return {}
