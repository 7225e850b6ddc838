"""Wheels that are compiled here, kept by everything that decides what comes out, and shared between workspaces.

An entry is a folder ``<name>-<key>`` with the wheel and ``build.json``. It appears by one rename: a killed build leaves
none, and two workspaces that build the same thing at a time both end up with a whole one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from bootstrap import activation, host, mirror
from bootstrap.facts import sources as reader
from bootstrap.requirements import Doing
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.runs import sha256_file


@dataclass(frozen=True)
class Build:
    """One wheel to compile.

    ``source`` is what ``pip wheel`` is given: ``("-r", LOCK)`` for a source distribution with its hash, or nothing for
    ``checkout``, of which the files of ``commit`` are built in a copy. ``inputs`` is everything that decides the
    outcome, in words for people; ``variables`` and ``options`` are how it is built. ``requirement`` is the source as
    people write it.
    ``contains`` are the compiled modules that the wheel must have: a build may leave some out without a word.
    """

    name: str
    inputs: Mapping[str, str]
    workspace: Path
    source: tuple[str, ...] = ()
    checkout: Path | None = None
    commit: str = ""
    requirement: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What the cache knows it by."""
        return hashlib.sha256(json.dumps(dict(self.inputs), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where it may be kept, best first."""
        return tuple(cache / f"{self.name}-{self.key}" for cache in caches(self.workspace))

    def command(self, python: Path, target: Path) -> str:
        """The build as a command for people."""
        return self._typed(self.argv(python, target, self.checkout))

    def by_hand(self, python: Path) -> str:
        """Building and installing at once, as a command for people. The version alone says nothing: hence by force."""
        what = self.requirement or str(self.checkout)
        return self._typed((str(python), "-m", "pip", "install", *_EXACT, "--force-reinstall", *self.options, what))

    def argv(self, python: Path, target: Path, checkout: Path | None) -> tuple[str, ...]:
        """pip, told to build one wheel into ``target`` with the packages that the environment has."""
        # Not -I: a build's own children must see the environment as this Python does.
        what, place = self.source or (str(checkout),), ("-w", str(target))
        return (str(python), "-m", "pip", "wheel", *_EXACT, "-v", *host.PIP_QUIET, *self.options, *place, *what)

    def _typed(self, argv: tuple[str, ...]) -> str:
        return " ".join((*(f"{name}={shlex.quote(value)}" for name, value in self.variables.items()), shlex.join(argv)))


#: Nothing is resolved and nothing is taken ready-made; the build sees the torch that it is for.
_EXACT = ("--no-deps", "--no-build-isolation", "--no-cache-dir")


#: What would change a build behind our back: ours are set, others must not leak in. Compiler flags are in the inputs.
_FOREIGN = re.compile(r"(DS_BUILD|FLASH_ATTENTION|APEX)_.*|TORCH_CUDA_ARCH_LIST|MAX_JOBS|NVCC_THREADS|MAKEFLAGS")
#: A part that is older was left by a build that was killed.
_OLD_S = 24 * 3600


def caches(workspace: Path) -> tuple[Path, ...]:
    """Where built wheels may lie, best first: ``UCLLM_CACHE`` or the user's cache folder, then the workspace's own."""
    named, xdg = os.environ.get("UCLLM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    home = os.path.expanduser("~")  # noqa: PTH111  Path.home() raises for a user without one
    shared = [Path(named)] if named else [Path(xdg, "ucllm")] if xdg else [Path(home, ".cache", "ucllm")]
    if not named and not xdg and home == "~":
        shared = []
    return tuple(base.absolute() / "wheels" for base in (*shared, Workspace(workspace).state / "cache"))


def cached(build: Build) -> Path | None:
    """The wheel, if it was built before and is as it was then."""
    return next((wheel for folder in build.folders if (wheel := whole(folder))), None)


def whole(folder: Path) -> Path | None:
    """The wheel of an entry of the cache, if the entry is there and whole."""
    told = record(folder)
    wheel = folder / str(told.get("wheel", ""))
    try:
        return wheel if wheel.suffix == ".whl" and sha256_file(wheel) == told.get("sha256") else None
    except OSError:
        return None


def last_seconds(build: Build) -> float | None:
    """How long the last build of this name took, on this machine or another with the same cache."""
    found = [record(path) for cache in caches(build.workspace) for path in cache.glob(f"{build.name}-*")]
    times = [
        (item["built"], item["seconds"])
        for item in found
        if item.get("name") == build.name and all(isinstance(item.get(key), float) for key in ("built", "seconds"))
    ]
    return max(times)[1] if times else None


def record(folder: Path) -> Mapping[str, Any]:
    """What an entry of the cache says of itself: its name, what it was made from, how long that took, and so on."""
    try:
        found = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def build(wanted: Build, workspace: Workspace, log: Path, doing: Doing, environment: Mapping[str, str]) -> Path:
    """Compile the wheel, unless the cache has it, and put it into the cache. Raises :class:`UcllmError`.

    ``environment`` is pip's: where it looks for a source distribution, and where it keeps what it fetched.
    """
    for folder in wanted.folders:
        try:
            fetch_built(workspace, folder)
            break
        except OSError:  # the shared cache cannot be written
            continue
        except UcllmError as error:
            if error.problems[0].code != "fetch.not-writable":
                raise
    found = cached(wanted)
    if found is not None:
        return found
    scratch = workspace.state / "cache" / "build" / wanted.name
    shutil.rmtree(scratch, ignore_errors=True)  # of a build that was killed
    wheels = scratch / "wheels"
    wheels.mkdir(parents=True)
    source = copy_of(wanted.checkout, wanted.commit, scratch / "source") if wanted.checkout else None
    temporary = scratch / "tmp"
    temporary.mkdir()
    active = activation.variables(workspace).items()
    own = {name: value for name, value in active if not _FOREIGN.fullmatch(name)}
    variables = {**own, **environment, **wanted.variables, "TMPDIR": str(temporary)}
    began = time.monotonic()
    host.run_logged(wanted.argv(workspace.python, wheels, source), log=log, env=variables, exact=True)
    seconds = time.monotonic() - began
    made = sorted(wheels.glob("*.whl"))
    if len(made) != 1:
        raise UcllmError("build.no-wheel", _("Building {name} left no wheel.").format(name=wanted.name), str(log))
    _verify(wanted, made[0], log)
    kept = _keep(wanted, made[0], seconds, doing)
    shutil.rmtree(scratch, ignore_errors=True)
    return kept


def fetch_built(workspace: Workspace, folder: Path) -> None:
    """Put an entry of the cache where it belongs, if the workspace's mirror has it."""
    entries = mirror.built(workspace, folder.name)
    if not entries or whole(folder):
        return

    def fill(part: Path) -> None:
        for entry in entries:
            mirror.get(workspace, entry, part / PurePosixPath(entry.path).name)

    _enter(folder, fill)


def _verify(built: Build, wheel: Path, log: Path) -> None:
    """Nothing incomplete goes into the cache, where it would be found again and again."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name.rpartition("/")[2].partition(".")[0] for name in archive.namelist() if name.endswith(".so")}
    missing = [name for name in built.contains if name not in names]
    if missing:
        what = _("Building {name} left out {modules}.").format(name=built.name, modules=", ".join(missing))
        raise UcllmError("build.incomplete", what, hint=_("Read {log}.").format(log=log))


def copy_of(checkout: Path, commit: str, target: Path) -> Path:
    """The files of ``commit`` in ``target``, which is made: what is checked out or staged is no matter.

    What a build writes beside them stays out of the checkout. Raises :class:`UcllmError`.
    """
    target.mkdir(parents=True)
    index = target.with_name(f"{target.name}.index")  # the checkout's own is left as it is
    for words in (("read-tree", commit), ("checkout-index", "--all", "--force", f"--prefix={target}/")):
        argv = [*reader.git("-C", str(checkout), *words)]
        argv.insert(argv.index("git"), f"GIT_INDEX_FILE={index}")  # `env` takes it, after it has unset the caller's
        done = host.capture(argv, timeout_s=300, env=reader.environment(checkout))
        if done.code != 0:
            what = _("The files of {path} cannot be copied.").format(path=checkout)
            raise UcllmError("build.no-source", what, done.complaint)
    index.unlink()
    return target


def _keep(built: Build, wheel: Path, seconds: float, doing: Doing) -> Path:
    """Put the wheel into the cache by one rename; into the workspace's own where the shared one takes nothing."""
    for number, folder in enumerate(built.folders, 1):
        try:
            return _put(built, wheel, seconds, folder)
        except OSError as error:
            if number == len(built.folders):
                raise
            text = _("the cache of built wheels cannot be written ({reason}), so {name} is kept in the workspace")
            doing.say(text.format(reason=f"{folder.parent}: {error.strerror or error}", name=built.name))
    raise AssertionError


def _put(built: Build, wheel: Path, seconds: float, folder: Path) -> Path:
    def fill(part: Path) -> None:
        shutil.copy2(wheel, part / wheel.name)
        told = {
            "name": built.name,
            "wheel": wheel.name,
            "sha256": sha256_file(wheel),
            "built": time.time(),
            "seconds": round(seconds, 1),
            "inputs": dict(built.inputs),
        }
        (part / "build.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    _enter(folder, fill)
    found = whole(folder)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    return found


def _enter(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let an entry of the cache appear whole, by one rename; a damaged one gives way."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob("*.part"):
        with contextlib.suppress(OSError):  # another process removes or renames it at this moment
            if time.time() - old.stat().st_mtime > _OLD_S:
                shutil.rmtree(old, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        fill(part)
        part.chmod(0o755)
        if os.path.lexists(folder) and whole(folder) is None:
            with contextlib.suppress(FileNotFoundError):  # another saw it too
                folder.rename(f"{part}.damaged.part")
        try:
            part.rename(folder)
        except OSError:
            if whole(folder) is None:  # else another workspace was faster, and its wheel is as good
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def install(wheel: Path, workspace: Workspace, log: Path, environment: Mapping[str, str]) -> None:
    """Put a built wheel into the environment, over whatever is there."""
    argv = install_argv(workspace.python, wheel)
    host.run_logged(argv, log=log, env=environment)


def install_argv(python: Path, wheel: Path) -> tuple[str, ...]:
    """pip, told to install exactly this file."""
    exact = ("--no-deps", "--force-reinstall", "--no-index")
    return (str(python), "-I", "-m", "pip", "install", *exact, *host.PIP_QUIET, str(wheel))
