"""The machine: system, memory, disks, limits, locale, scheduler, the environment variables that checks look at."""

from __future__ import annotations

import hashlib
import locale
import os
import platform
import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Disk, Interpreter, MachineFacts, bases, cgroup, mounts
from bootstrap.facts.collect import Request
from pipeline.i18n import _

#: How long a file system may take to answer, in seconds: a lost NFS server must not cost the other facts.
DISK_TIMEOUT_S = 3.0

#: The variables that checks look at.
VARIABLES = frozenset(
    {
        "CFLAGS",
        "CONDA_PREFIX",
        "CPPFLAGS",
        "CUDA_HOME",
        "CXXFLAGS",
        "CUDA_VISIBLE_DEVICES",
        "HF_HUB_OFFLINE",
        "JOB_ID",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LDFLAGS",
        "LD_LIBRARY_PATH",
        "MASTER_ADDR",
        "MASTER_PORT",
        "MAX_JOBS",
        "NHOSTS",
        "NVCC_APPEND_FLAGS",
        "NVCC_PREPEND_FLAGS",
        "OMP_NUM_THREADS",
        "PE_HOSTFILE",
        "PYTHONCOERCECLOCALE",
        "PYTHONHOME",
        "PYTHONNOUSERSITE",
        "PYTHONPATH",
        "PYTHONUTF8",
        "TMPDIR",
        "TORCH_CUDA_ARCH_LIST",
        "VIRTUAL_ENV",
        "WANDB_MODE",
    }
)
PREFIXES = ("NCCL_", "GLOO_", "SLURM_", "SGE_", "PBS_")
#: Words in a name whose value may be a secret or say who somebody is; such variables are never read.
PRIVATE = re.compile("KEY|TOKEN|SECRET|PASSWORD|JWT|USER|LOGNAME|ACCOUNT|MAIL|UID|GID")

#: What gives a scheduler away: commands that are its own, then a variable that it sets in each job.
SCHEDULERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "slurm": (("sinfo", "scontrol"), "SLURM_JOB_ID"),
    "pbs": (("pbsnodes",), "PBS_JOBID"),
    "sge": (("qconf", "qhost"), "PE_HOSTFILE"),
}


def collect(request: Request) -> MachineFacts:
    """Read the machine. Nothing that fails here stops the rest: it becomes an entry of ``errors``."""
    errors: dict[str, str] = {}
    disks = _disks(request.workspace.root, errors)
    found = own_interpreter()
    if not any(item.version.startswith(f"{version}.") for item in found for version in request.profile.pythons):
        found = (*found, *other_interpreters(request.profile.pythons))
    total, available = memory(errors)
    return MachineFacts(
        system=platform.system(),
        machine=platform.machine(),
        libc=libc(),
        cpu=cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_total=total,
        memory_available=available,
        disks=disks,
        limits=limits(),
        # Python chose it when it started, by the same variables, coercions and installed locales as its children will.
        encoding=locale.getpreferredencoding(False),
        scheduler=scheduler(os.environ),
        variables=variables(os.environ),
        interpreters=found,
        bases=bases.collect(request, errors) if request.profile.env_kind == "adopt" else (),
        container=container(os.environ),
        errors=errors,
    )


def cpu(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor, with what it can: what is compiled with ``-march=native`` runs on no older one.

    Its name alone does not tell generations apart under a hypervisor. Empty if it is not told.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines[:64] if ":" in line}
    keys = ("model name", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")
    told = "\n".join(said.get(key, "") for key in keys)
    name = said.get("model name", platform.machine())
    return f"{name} {hashlib.sha256(told.encode()).hexdigest()[:8]}" if told.strip() else ""


def libc() -> str:
    """The C library as ``glibc 2.36`` or ``musl``; empty if it cannot be told."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return "musl" if any(Path("/lib").glob("ld-musl-*")) else ""


def memory(
    errors: dict[str, str], *, meminfo: Path = Path("/proc/meminfo"), groups: Path = cgroup.SYS
) -> tuple[int | None, int | None]:
    """Memory in all and available, in bytes: the machine's, or less where a control group leaves less."""
    try:
        words = [line.split() for line in meminfo.read_text(encoding="ascii").splitlines()]
        sizes = {item[0]: int(item[1]) * 1024 for item in words if len(item) >= 2}
        total, available = sizes["MemTotal:"], sizes["MemAvailable:"]
    except (OSError, ValueError, KeyError) as error:
        errors["memory"] = str(error)
        return None, None
    for limit, used in cgroup.memory(cgroup.own(), groups):
        if limit < sizes["MemTotal:"]:  # "no limit" is a number larger than any memory
            total = min(total, limit)
            available = min(available, limit - used if used is not None else limit)
    return total, max(0, available)


def limits() -> dict[str, int]:
    """The limits of this process, see :class:`bootstrap.facts.MachineFacts`."""
    import resource

    kinds = {"open_files": "RLIMIT_NOFILE", "processes": "RLIMIT_NPROC", "memlock": "RLIMIT_MEMLOCK"}
    found = {"pids": cgroup.processes(cgroup.own())}
    for name, kind in kinds.items():
        number = getattr(resource, kind, None)
        if number is not None:
            soft, hard = (-1 if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(number))
            found[name], found[f"hard_{name}"] = soft, hard
    return found


def scheduler(environment: Mapping[str, str]) -> str:
    """The scheduler whose commands are here; with those of several or none, the one this is a job of."""
    here = [
        name
        for name, (commands, _variable) in SCHEDULERS.items()
        if any(shutil.which(command, path=environment.get("PATH", os.defpath)) for command in commands)
    ]
    jobs = [name for name, (_commands, variable) in SCHEDULERS.items() if environment.get(variable)]
    if len(here) == 1:
        return here[0]
    return next((name for name in jobs if name in here or not here), here[0] if here else "")


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that checks look at, without those that may hold a secret or a person's name."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if (name in VARIABLES or name.startswith(PREFIXES)) and not PRIVATE.search(name)
    }


def container(environment: Mapping[str, str], root: Path = Path("/")) -> str:
    """The kind of container this runs in: ``apptainer``, ``podman``, ``kubernetes``, ``docker`` or empty."""
    if environment.get("APPTAINER_CONTAINER") or environment.get("SINGULARITY_CONTAINER"):
        return "apptainer"
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    for name, kind in (("run/.containerenv", "podman"), (".dockerenv", "docker")):
        if os.path.lexists(root / name):
            return kind
    return ""


def _disks(workspace: Path, errors: dict[str, str]) -> dict[str, Disk]:
    """The four file systems, each asked in a thread of its own: one that hangs costs only itself."""
    table = mounts.read()
    places: dict[str, tuple[Path, bool]] = {
        "workspace": (workspace, False),
        "tmp": (Path(os.environ.get("TMPDIR") or "/tmp"), True),  # noqa: S108  what every program takes without TMPDIR
        "home": (Path(os.path.expanduser("~")), True),  # noqa: PTH111  Path.home() raises for an unknown user
        "shm": (Path("/dev/shm"), True),  # noqa: S108  where PyTorch and NCCL put shared memory
    }
    found = {name: Disk(str(path)) for name, (path, _must) in places.items()}
    reasons: dict[str, str] = {}

    def ask(name: str, path: Path, must_exist: bool) -> None:
        found[name] = disk(path, reasons, table, must_exist=must_exist)

    threads = {
        name: threading.Thread(target=ask, args=(name, *place), name=f"disk-{name}", daemon=True)
        for name, place in places.items()
    }
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + DISK_TIMEOUT_S
    for name, thread in threads.items():
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            reason = _("no answer in {seconds} s").format(seconds=round(DISK_TIMEOUT_S))
            errors[f"disk {places[name][0]}"] = reason
    errors.update(dict(reasons))  # a copy: a late answer may still come in
    return dict(found)


def disk(path: Path, errors: dict[str, str], table: str, *, must_exist: bool) -> Disk:
    """The file system that holds ``path``, or its nearest parent if it need not exist.

    What must exist and does not has no room, is not writable, and is ``absent`` or has an ``obstacle``; the reason is
    ``errors["disk PATH"]``.
    """
    # Path.exists raises for what lies in a folder that may not be read.
    existing = next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # noqa: PTH110
    obstacle = "" if os.path.isdir(existing) else str(existing)  # noqa: PTH112  as above
    if must_exist and (obstacle or existing != path):
        errors[f"disk {path}"] = _("there is no such folder")
        # In a folder that may not be read it may be, for all we know.
        absent = not obstacle and os.access(existing, os.X_OK)
        return Disk(str(path), free=0, total=0, writable=False, absent=absent, obstacle=obstacle)
    writable = not obstacle and os.access(existing, os.W_OK | os.X_OK)
    kind = mounts.kind(os.path.realpath(existing), table)
    try:
        state = os.statvfs(existing)
    except OSError as error:
        errors[f"disk {path}"] = error.strerror or str(error)
        return Disk(str(path), writable=writable, kind=kind, obstacle=obstacle)
    return Disk(
        str(path),
        free=state.f_bavail * state.f_frsize,
        total=state.f_blocks * state.f_frsize,
        inodes_free=state.f_favail if state.f_files else None,  # btrfs and some network file systems count none
        noexec=bool(state.f_flag & getattr(os, "ST_NOEXEC", 0)),
        writable=writable,
        kind=kind,
        obstacle=obstacle,
    )


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
