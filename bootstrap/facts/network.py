"""The network: interfaces, RDMA adapters, and the port at which the processes of a training meet."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path, PurePath

from bootstrap.facts import NetworkFacts
from bootstrap.facts.collect import Request

SYS = Path("/sys/class")
#: Programs whose first argument is the program that people know.
_RUNNERS = re.compile(r"^(python|pypy|bash|sh|perl|node)[0-9.]*$")


def collect(request: Request) -> NetworkFacts:
    """Read the interfaces and try the port: ``MASTER_PORT`` if that is one, else the profile's."""
    port = port_number(os.environ.get("MASTER_PORT", "")) or request.profile.machine.port
    free = can_be_bound(port)
    return NetworkFacts(
        interfaces=interfaces(),
        adapters=adapters(),
        port=port,
        port_free=free,
        port_owner=owner(port) if free is False else "",
    )


def port_number(text: str) -> int | None:
    """``text`` as a TCP port; ``None`` if it is none."""
    return int(text) if re.fullmatch("[0-9]{1,5}", text) and 0 < int(text) < 65536 else None


def interfaces(root: Path = SYS) -> dict[str, str]:
    """Interfaces with ``up`` or ``down``. One that cannot say, as ``lo``, is up (kernel: ``sysfs-class-net``)."""
    found = {}
    try:
        names = sorted(entry.name for entry in (root / "net").iterdir() if entry.is_dir())
    except OSError:
        return {}
    for name in names:
        try:
            state = (root / "net" / name / "operstate").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            state = "unknown"
        found[name] = "up" if state in ("up", "unknown") else "down"
    return found


def adapters(root: Path = SYS) -> tuple[str, ...] | None:
    """The RDMA adapters; ``None`` if the folder cannot be read."""
    try:
        return tuple(sorted(entry.name for entry in (root / "infiniband").iterdir()))
    except FileNotFoundError:
        return () if root.is_dir() else None
    except OSError:
        return None


def can_be_bound(port: int) -> bool | None:
    """Whether a server can take ``port`` at every address, tried as torch's own store does; ``None``: no telling."""
    tried = [_try(socket.AF_INET, "0.0.0.0", port)]  # noqa: S104  nobody listens: it is only bound, and closed at once
    if socket.has_ipv6:
        tried.append(_try(socket.AF_INET6, "::", port))
    known = [item for item in tried if item is not None]
    return all(known) if known else None


def _try(family: int, address: str, port: int) -> bool | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as server:
            # Connections of an ended training that still wait for late packets do not count.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            server.bind((address, port))
        return True
    except OSError as error:
        return False if error.errno in (errno.EADDRINUSE, errno.EACCES) else None


def owner(port: int) -> str:
    """Who listens at ``port``, as process id and name; empty if that may not be seen."""
    import psutil

    try:
        found = [
            item.pid
            for item in psutil.net_connections(kind="tcp")
            if item.laddr and item.laddr.port == port and not item.raddr and item.pid
        ]
        return named(found[0]) if found else ""
    except (psutil.Error, OSError, RuntimeError):
        return ""


def named(pid: int) -> str:
    """A process as ``4711 (python train.py)``; the id alone where no more may be seen, as of another container's."""
    import psutil

    try:
        return f"{pid} ({program(psutil.Process(pid).cmdline())})"
    except (psutil.Error, OSError):
        return str(pid)


def program(argv: Sequence[str]) -> str:
    """What people call a process: the program, and the script it runs. Other arguments may hold secrets."""
    words = argv[0].split() if argv else []
    if not words:
        return "?"
    name = PurePath(words[0]).name
    if not _RUNNERS.match(name):
        return name
    for index, word in enumerate(argv[1:], 1):
        if word == "-m" and index + 1 < len(argv):
            return f"{name} -m {argv[index + 1]}"
        if word == "-c":
            break
        if not word.startswith("-"):
            return f"{name} {PurePath(word).name}"
    return name
