"""Folders in which torch builds extensions at run time: their lock, who holds it or waits, for what they were built.

torch's lock is a file ``lock`` that the builder creates and holds open until it has finished, then removes; whoever
comes later looks for the file again and again, for ever, without a word. A killed builder leaves the file.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bootstrap.facts import EnvFacts, KernelBuild, Lock, mounts

#: Our record beside a build of what it was built for: ``torch``, ``cuda``, ``archs``, ``python``.
STAMP = "ucllm-stamp.json"
#: File systems that other hosts may share; ``fuse`` ones by their full name, as ``/proc/mounts`` has it.
SHARED = frozenset({"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "fuse.sshfs"})
#: The last of the three kernels that Megatron loads at its start: who has it waits for none of them any more.
_LAST_KERNEL = "/scaled_softmax_cuda"


@dataclass(frozen=True)
class Process:
    """A process, as far as ``/proc`` shows it. ``hidden``: its open files may not be read."""

    pid: int
    uid: int
    cwd: str
    argv: tuple[str, ...]
    open_files: frozenset[tuple[int, int]]
    hidden: bool


def read(path: Path, env: EnvFacts, waits: Callable[[Process], bool] = lambda _process: False) -> KernelBuild | None:
    """The build folder ``path``; ``None`` if there is none. ``waits`` tells more processes that wait for its lock."""
    try:
        names = sorted(os.listdir(path))  # noqa: PTH208  a folder that may not be read must say so here
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return KernelBuild(str(path), error=str(error))
    built = tuple(str(path / name) for name in names if name.endswith(".so"))
    try:
        lock = read_lock(path / "lock", waits)
    except OSError as error:
        return KernelBuild(str(path), built, error=str(error))
    return KernelBuild(str(path), built, lock, _stamp(path, env))


def read_lock(path: Path, waits: Callable[[Process], bool] = lambda _process: False) -> Lock | None:
    """A lock and the processes around it, now; ``None`` if there is none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    folder = os.path.realpath(path.parent)
    owners, waiters = [], []
    # The builder made the file, so it is its owner's; only root sees what other users' processes hold.
    theirs = state.st_uid != os.getuid()
    # A file system that other hosts may share shows only who holds it here.
    unseen = mounts.kind(folder, mounts.read()) in SHARED or (theirs and os.getuid() != 0)
    for process in processes():
        if (state.st_dev, state.st_ino) in process.open_files:
            owners.append(process.pid)
        elif process.cwd == folder or process.cwd.startswith(f"{folder}/") or waits(process):
            waiters.append(process.pid)
        unseen = unseen or (theirs and process.hidden and process.uid == state.st_uid)  # a root with fewer rights
    age = max(0.0, time.time() - state.st_mtime)
    return Lock(str(path), round(age, 1), tuple(owners), tuple(waiters), unseen)


def processes() -> Iterator[Process]:
    """All processes but this one."""
    for name in os.listdir("/proc"):  # noqa: PTH208  hundreds of entries, whose names are all that is needed
        if not name.isdigit() or int(name) == os.getpid():
            continue
        folder = f"/proc/{name}"
        try:
            uid = os.stat(folder).st_uid  # noqa: PTH116  likewise
            with open(f"{folder}/cmdline", "rb") as stream:  # noqa: PTH123  likewise
                argv = tuple(part.decode("utf-8", "replace") for part in stream.read().split(b"\0")[:-1])
        except OSError:  # it ended meanwhile
            continue
        if not argv:  # a thread of the kernel's, or a process that ended and was not asked how
            continue
        open_files, hidden = _open_files(folder)
        try:
            cwd = os.readlink(f"{folder}/cwd")  # noqa: PTH115  likewise
        except OSError:
            cwd = ""
        yield Process(int(name), uid, cwd, argv, open_files, hidden)


def _open_files(folder: str) -> tuple[frozenset[tuple[int, int]], bool]:
    """(device, inode) of the files a process has open, and whether they may not be read."""
    found = set()
    try:
        entries = os.listdir(f"{folder}/fd")  # noqa: PTH208  as above
    except OSError as error:
        return frozenset(), isinstance(error, PermissionError)
    for entry in entries:
        try:
            state = os.stat(f"{folder}/fd/{entry}")  # noqa: PTH116  as above
        except OSError:
            continue
        found.add((state.st_dev, state.st_ino))
    return frozenset(found), False


def waits_for_megatron(checkout: Path) -> Callable[[Process], bool]:
    """Whether a process is a training of this checkout that has not got past its kernels.

    It is a Python that runs one of the checkout's ``pretrain_*.py`` itself (its launcher does not), was not told to do
    without the kernels, and has not loaded the last of them. What such a process waits for cannot be seen.
    """
    home = os.path.realpath(checkout)

    def waits(process: Process) -> bool:
        if not Path(process.argv[0]).name.startswith("python"):
            return False
        words = [word for word in process.argv[1:] if not re.fullmatch(r"-[uIBEsSOvqd]+", word)]
        if not words or not re.fullmatch(r"pretrain_\w+\.py", Path(words[0]).name):
            return False
        script = os.path.realpath(os.path.join(process.cwd, words[0]))  # noqa: PTH118  joined as the process does
        if os.path.dirname(script) != home or "--no-masked-softmax-fusion" in words:  # noqa: PTH120  likewise
            return False
        try:
            return _LAST_KERNEL not in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False

    return waits


def _stamp(path: Path, env: EnvFacts) -> dict[str, str]:
    """For what a folder was built: by our stamp, else as far as ``build.ninja`` tells."""
    try:
        data = json.loads((path / STAMP).read_text(encoding="utf-8"))
        if isinstance(data, dict):
            return {str(key): str(value) for key, value in data.items()}
    except (OSError, ValueError):
        pass
    try:
        text = (path / "build.ninja").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return _from_ninja(text, env)


def _from_ninja(text: str, env: EnvFacts) -> dict[str, str]:
    """``cuda``, ``archs``, ``python`` and ``include`` (torch's folder of headers), each only where it can be seen."""
    stamp = {}
    nvcc = re.search(r"^nvcc = .*?cuda-(\d+\.\d+)[^/\s]*/", text, re.MULTILINE)
    if nvcc:
        stamp["cuda"] = nvcc[1]
    codes = re.findall(r"code=(\[[^]\n]*\]|\w+)", text)  # of several: `[compute_86,sm_86]`
    archs = [item for code in codes for item in re.findall(r"(sm|compute)_(\d+[a-z]?)", code)]
    if archs:
        names = {number + ("+PTX" if kind == "compute" else "") for kind, number in archs}
        stamp["archs"] = ",".join(sorted(names, key=lambda name: (int(re.sub(r"\D", "", name)), name)))
    python = re.search(r"/include/python(3\.\d+)[a-z]*(?=[\s/])", text)
    if python:
        stamp["python"] = python[1]
    include = re.search(r"-isystem (\S+/torch/include)(?=\s)", text)
    if include:
        # The same folder by another name is the same: said as the environment's own facts say it.
        folder, torch = include[1], env.torch.folder if env.torch else ""
        same = torch and os.path.realpath(folder) == os.path.realpath(f"{torch}/include")
        stamp["include"] = f"{torch}/include" if same else folder
    return stamp
