"""What is built in place: Megatron's helpers and fused kernels, and torch's extensions."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

from bootstrap import host
from bootstrap.facts import BuildsFacts, EnvFacts, Helpers, KernelBuild, kernels
from bootstrap.facts.collect import Request
from bootstrap.workspace import Workspace

#: Seconds for loading the helpers, or for asking python3-config.
TIMEOUT_S = 20.0
#: The Makefile's line at the pinned commit, up to spaces: whose suffix the helpers get.
LIBEXT = "$(shell python3-config --extension-suffix)"
#: Prints why the helpers of the given folder cannot be loaded. The file is the one that an import would take.
_LOAD = """
import importlib.machinery, importlib.util, os, sys
for suffix in importlib.machinery.EXTENSION_SUFFIXES:
    path = os.path.join(sys.argv[1], "helpers" + suffix)
    if os.path.isfile(path):
        break
else:
    sys.exit("no helpers" + importlib.machinery.EXTENSION_SUFFIXES[0])
spec = importlib.util.spec_from_file_location("helpers", path)
spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


def collect(request: Request) -> BuildsFacts:
    """Look at every build. A folder that is not there is left out."""
    env: EnvFacts = request.section("env")
    source = request.profile.sources.get("megatron")
    found = extensions_root()
    extensions = read_extensions(found, env)
    if source is None:
        return BuildsFacts(torch_extensions=extensions, torch_extensions_root=str(found))
    checkout = request.workspace.root / source.folder
    return BuildsFacts(
        read_helpers(helpers_folder(checkout), env, request.workspace),
        kernels.read(fused_kernels_folder(checkout), env, kernels.waits_for_megatron(checkout)),
        extensions,
        str(found),
    )


def helpers_folder(checkout: Path) -> Path:
    """Where Megatron's helpers are built."""
    return checkout / "megatron" / "data"


def fused_kernels_folder(checkout: Path) -> Path:
    """Where Megatron has its kernels built."""
    return checkout / "megatron" / "fused_kernels" / "build"


def search_path(workspace: Workspace) -> str:
    """The ``PATH`` of a stage or build: the environment's commands first."""
    return os.pathsep.join((str(workspace.env / "bin"), os.environ.get("PATH", os.defpath)))


def read_helpers(folder: Path, env: EnvFacts, workspace: Workspace) -> Helpers | None:
    """The compiled helpers in ``folder``; ``None`` if there is no such folder."""
    try:
        makefile = (folder / "Makefile").read_text(encoding="utf-8", errors="replace")
        names = [*folder.glob("helpers*.so"), *(p for p in [folder / "helpers"] if p.is_file())]
    except OSError:
        return None
    line = re.search(r"^LIBEXT\s*[:?]?=\s*(.*?)\s*$", makefile, re.MULTILINE)
    libext = line[1] if line else ""
    files = tuple(sorted(path.name for path in names))
    return Helpers(
        str(folder),
        files,
        _loads(folder, env),
        _stale(folder, env.extension_suffix),
        _make_suffix(libext, search_path(workspace)),
        libext != LIBEXT,
    )


def _loads(folder: Path, env: EnvFacts) -> str:
    """Why the helpers cannot be loaded; empty if they can. In a process of its own: a bad library may crash it."""
    if env.state != "ready":
        return env.error or f"{env.path}: {env.state}"
    try:
        # -B: looking must leave no __pycache__ behind
        done = host.capture((env.interpreter, "-I", "-B", "-c", _LOAD, str(folder)), timeout_s=TIMEOUT_S)
    except (OSError, TimeoutError) as error:
        return str(error)
    if done.code == 0:
        return ""
    if done.code < 0:
        return signal.strsignal(-done.code) or f"signal {-done.code}"
    return done.complaint


def _stale(folder: Path, suffix: str) -> bool:
    try:
        built = (folder / f"helpers{suffix}").stat().st_mtime_ns
        return (folder / "helpers.cpp").stat().st_mtime_ns > built
    except OSError:
        return False


def _make_suffix(libext: str, path: str) -> str:
    """What ``make`` would put for ``LIBEXT``, run with this ``PATH``. Empty, as for make, where nothing answers."""
    shell = re.fullmatch(r"\$\(shell\s+(\S+)\s+--extension-suffix\s*\)", libext)
    if shell is None:
        return "" if "$" in libext else libext
    program = shutil.which(shell[1], path=path)
    if program is None:
        return ""
    try:
        done = host.capture((program, "--extension-suffix"), timeout_s=TIMEOUT_S, env={"PATH": path})
    except (OSError, TimeoutError):
        return ""
    return done.stdout.strip()


def extensions_root() -> Path:
    """Where torch builds its extensions: ``TORCH_EXTENSIONS_DIR``, else below the user's cache."""
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    if named:
        return Path(named).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "torch_extensions"


def read_extensions(root: Path, env: EnvFacts) -> tuple[KernelBuild, ...]:
    """The builds below ``root``: ``<op>/``, and ``<python_cuda>/<op>/`` where torch chose the root itself."""
    try:
        marks = [
            path for depth in ("*", "*/*") for name in ("lock", "build.ninja") for path in root.glob(f"{depth}/{name}")
        ]
    except OSError as error:
        return (KernelBuild(str(root), error=str(error)),)
    found = (kernels.read(folder, env) for folder in sorted({path.parent for path in marks}))
    return tuple(build for build in found if build is not None)
