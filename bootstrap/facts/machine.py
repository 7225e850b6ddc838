"""The machine: system, memory, disks, limits, locale, scheduler, the environment variables that checks look at."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Disk, Interpreter, MachineFacts
from bootstrap.facts.collect import Request


def collect(request: Request) -> MachineFacts:
    """Read the machine. Nothing that fails here stops the rest: it becomes an entry of ``errors``."""
    errors: dict[str, str] = {}
    found = own_interpreter()
    if not any(item.version.startswith(f"{version}.") for item in found for version in request.profile.pythons):
        found = (*found, *other_interpreters(request.profile.pythons))
    return MachineFacts(
        system=platform.system(),
        machine=platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_available=_memory_available(errors),
        disks={"workspace": _disk(request.workspace.root, errors)},
        interpreters=found,
        scheduler="slurm" if shutil.which("sinfo") or "SLURM_JOB_ID" in os.environ else "",
        errors=errors,
    )


def _disk(path: Path, errors: dict[str, str]) -> Disk:
    # Path.exists raises for what lies in a folder that may not be read.
    existing = next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # noqa: PTH110
    try:
        free: int | None = shutil.disk_usage(existing).free
    except OSError as error:
        free, errors[f"disk {path}"] = None, str(error)
    return Disk(str(path), free=free, writable=os.access(existing, os.W_OK | os.X_OK))


def _memory_available(errors: dict[str, str]) -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(text.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError) as error:
        errors["memory_available"] = str(error)
        return None


def own_interpreter() -> tuple[Interpreter, ...]:
    """The Python that the tool's own environment was made from: known without asking anyone."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return (Interpreter(str(base), platform.python_version()),)


def other_interpreters(versions: tuple[str, ...]) -> tuple[Interpreter, ...]:
    """Pythons on PATH called ``python3.12`` and the like that really have that version."""
    found = []
    for version in reversed(versions):
        path = shutil.which(f"python{version}")
        if path is None:
            continue
        try:
            done = host.capture((path, "-Ic", "import sys; print(sys.executable, *sys.version_info[:3])"), timeout_s=10)
        except (OSError, TimeoutError):
            continue
        words = done.stdout.split()
        if done.code == 0 and len(words) == 4 and words[1:3] == version.split("."):
            found.append(Interpreter(words[0], ".".join(words[1:])))
    return tuple(found)
