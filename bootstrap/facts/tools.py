"""Programs and headers that builds need, as a build or a stage would find them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Program, ToolsFacts
from bootstrap.facts.builds import search_path
from bootstrap.facts.collect import Request

#: Programs and what makes them say their version; without arguments only their place is of interest.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "make": ("--version",),
    "git": ("--version",),
    "ninja": ("--version",),
    "gcc": ("-dumpfullversion", "-dumpversion"),
    "g++": ("-dumpfullversion", "-dumpversion"),
    "cmake": ("--version",),
    "nvcc": ("--version",),
    "python3-config": (),
    "srun": (),
    "sbatch": (),
    "qsub": (),
}
#: What may stand before the compiler in CC and CXX; it is the compiler after them whose version counts.
LAUNCHERS = frozenset({"ccache", "distcc", "icecc", "sccache"})
TIMEOUT_S = 5.0


def collect(request: Request) -> ToolsFacts:
    """Find the programs, ask them all at once for their versions, and look for libaio."""
    path = search_path(request.workspace)
    # Who builds asks CC and CXX before any name.
    chosen = {"gcc": _compiler(os.environ.get("CC", "")), "g++": _compiler(os.environ.get("CXX", ""))}
    found = {name: place for name in PROGRAMS if (place := shutil.which(chosen.get(name) or name, path=path))}
    # The whole PATH, the environment's own part too: another nvcc behind the right one is no matter.
    mine = shutil.which("nvcc", path=os.environ.get("PATH", ""))
    home = os.environ.get("CUDA_HOME", "")
    in_home = str(Path(home, "bin", "nvcc")) if home else ""
    asked: dict[str, tuple[str, tuple[str, ...]]] = {name: (place, PROGRAMS[name]) for name, place in found.items()}
    asked |= {"user nvcc": (mine, PROGRAMS["nvcc"])} if mine else {}
    asked |= {"home nvcc": (in_home, PROGRAMS["nvcc"])} if in_home and os.access(in_home, os.X_OK) else {}
    versions = _versions(asked)
    headers, libraries = _include_folders(request.workspace.env), _library_folders(request.workspace.env)
    return ToolsFacts(
        path=tuple(path.split(os.pathsep)),
        programs={name: Program(place, versions.get(name, "")) for name, place in found.items()},
        user_nvcc=Program(mine, versions.get("user nvcc", "")) if mine else None,
        cuda_home=Program(in_home, versions.get("home nvcc", "")) if home else None,
        headers={"libaio.h": _first(headers, "libaio.h")},
        libraries={"libaio": _first(libraries, "libaio.so")},
        looked_in=tuple(dict.fromkeys((*headers, *libraries))),
    )


def _compiler(command: str) -> str:
    """The program in a ``CC`` or ``CXX``, which may hold a launcher before it and options after it."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation mark that is not closed
        return command
    return next((word for word in words if os.path.basename(word) not in LAUNCHERS), "")  # noqa: PTH119  text


def _versions(asked: dict[str, tuple[str, tuple[str, ...]]]) -> dict[str, str]:
    """What each program says of its version; one that hangs or fails says nothing."""
    answers: dict[str, str] = {}

    def ask(name: str, place: str, arguments: tuple[str, ...]) -> None:
        try:
            done = host.capture((place, *arguments), timeout_s=TIMEOUT_S)
        except (OSError, TimeoutError):
            return
        # nvcc's line is «release 11.8, V11.8.89»; the others begin with a name, or are the version alone.
        version = re.search(r"V(\d+(?:\.\d+)+)", done.stdout) if "release" in done.stdout else None
        version = version or re.search(r"(\d+(?:\.\d+)+|^\d+$)", done.stdout, re.MULTILINE)
        if done.code == 0 and version:
            answers[name] = version[1]

    threads = [
        threading.Thread(target=ask, args=(name, place, arguments), daemon=True)
        for name, (place, arguments) in asked.items()
        if arguments
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _split(*names: str) -> Iterable[str]:
    return (item for name in names for item in os.environ.get(name, "").split(os.pathsep) if item)


def _include_folders(env: Path) -> tuple[str, ...]:
    """Where a compiler looks for headers, in its order: gcc's manual, «Environment Variables»."""
    conda = os.environ.get("CONDA_PREFIX", "")
    more = (f"{conda}/include",) if conda else ()
    return (*_split("CPATH", "C_INCLUDE_PATH"), str(env / "include"), *more, "/usr/local/include", "/usr/include")


def _library_folders(env: Path) -> tuple[str, ...]:
    """Where a linker looks for libraries, multiarch folders of Debian included."""
    multiarch = f"{os.uname().machine}-linux-gnu"
    conda = os.environ.get("CONDA_PREFIX", "")
    more = (f"{conda}/lib",) if conda else ()
    system = (
        "/usr/local/lib",
        f"/usr/lib/{multiarch}",
        "/usr/lib64",
        "/usr/lib",
        f"/lib/{multiarch}",
        "/lib64",
        "/lib",
    )
    return (*_split("LIBRARY_PATH"), str(env / "lib"), *more, *system)


def _first(folders: Iterable[str], name: str) -> str:
    """The first of the folders that has the file, as its path; empty if none has."""
    for folder in folders:
        path = os.path.join(folder, name)  # noqa: PTH118  os.path raises for nothing that may not be read
        if os.path.exists(path):  # noqa: PTH110  as above
            return path
    return ""
