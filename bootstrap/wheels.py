"""Wheels that are compiled here, kept by everything that decides what comes out, and shared between workspaces.

An entry is a folder ``<name>-<key>`` with the wheel and ``build.json``. It appears by one rename: a killed build leaves
none, and two workspaces that build the same thing at a time both end up with a whole one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bootstrap import activation, host, mirror
from bootstrap.requirements import Doing
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.runs import sha256_file


@dataclass(frozen=True)
class Build:
    """One wheel to compile.

    ``source`` is what ``pip wheel`` is given: ``("-r", LOCK)`` for a source distribution with its hash, or nothing for
    ``checkout``, whose tracked files are built in a copy. ``inputs`` is everything that decides the outcome, in words
    for people; ``variables`` and ``options`` are how it is built. ``requirement`` is the source as people write it.
    """

    name: str
    inputs: Mapping[str, str]
    source: tuple[str, ...] = ()
    checkout: Path | None = None
    requirement: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What the cache knows it by."""
        return hashlib.sha256(json.dumps(dict(self.inputs), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where the cache keeps it."""
        return cache_folder() / f"{self.name}-{self.key}"

    def command(self, python: Path, target: Path) -> str:
        """The build as a command for people."""
        return self._typed(self.argv(python, target, self.checkout))

    def by_hand(self, python: Path) -> str:
        """Building and installing at once, as a command for people. The version alone says nothing: hence by force."""
        what = self.requirement or str(self.checkout)
        return self._typed((str(python), "-m", "pip", "install", *_EXACT, "--force-reinstall", *self.options, what))

    def argv(self, python: Path, target: Path, checkout: Path | None) -> tuple[str, ...]:
        """pip, told to build one wheel into ``target`` with the packages that the environment has."""
        quiet = ("-v", "--no-input", "--disable-pip-version-check", "--progress-bar", "off")
        # Not -I: a build's own children must see the environment as this Python does.
        what = self.source or (str(checkout),)
        return (str(python), "-m", "pip", "wheel", *_EXACT, *quiet, *self.options, "-w", str(target), *what)

    def _typed(self, argv: tuple[str, ...]) -> str:
        return " ".join((*(f"{name}={shlex.quote(value)}" for name, value in self.variables.items()), shlex.join(argv)))


#: Nothing is resolved and nothing is taken ready-made; the build sees the torch that it is for.
_EXACT = ("--no-deps", "--no-build-isolation", "--no-cache-dir")


def cache_folder() -> Path:
    """``UCLLM_CACHE``, else the user's cache folder (``XDG_CACHE_HOME``, ``~/.cache``)."""
    named = os.environ.get("UCLLM_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ucllm"
    return base.absolute() / "wheels"


def cached(build: Build) -> Path | None:
    """The wheel, if it was built before and is as it was then."""
    record = _record(build.folder)
    wheel = build.folder / str(record.get("wheel", ""))
    if wheel.suffix == ".whl" and wheel.is_file() and sha256_file(wheel) == record.get("sha256"):
        return wheel
    return None


def last_seconds(name: str) -> float | None:
    """How long the last build of this name took, on this machine or another with the same cache."""
    records = [_record(path) for path in cache_folder().glob(f"{name}-*") if not path.name.endswith(".part")]
    times = [(float(record["built"]), float(record["seconds"])) for record in records if record.get("name") == name]
    return max(times)[1] if times else None


def _record(folder: Path) -> Mapping[str, str]:
    try:
        found = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def build(wanted: Build, workspace: Workspace, log: Path, doing: Doing, environment: Mapping[str, str]) -> Path:
    """Compile the wheel, unless the cache has it, and put it into the cache. Raises :class:`UcllmError`.

    ``environment`` is pip's: where it looks for a source distribution, and where it keeps what it fetched.
    """
    mirror.fetch_built(workspace, wanted.folder)
    found = cached(wanted)
    if found is not None:
        return found
    if wanted.folder.exists():  # a damaged entry
        doing.move_aside(wanted.folder)
    scratch = workspace.state / "cache" / "build" / wanted.name
    shutil.rmtree(scratch, ignore_errors=True)  # of a build that was killed
    wheels = scratch / "wheels"
    wheels.mkdir(parents=True)
    source = _copy_of(wanted.checkout, scratch / "source") if wanted.checkout else None
    temporary = scratch / "tmp"
    temporary.mkdir()
    variables = {**activation.variables(workspace), **environment, **wanted.variables, "TMPDIR": str(temporary)}
    began = time.monotonic()
    host.run_logged(wanted.argv(workspace.python, wheels, source), log=log, env=variables)
    seconds = time.monotonic() - began
    made = sorted(wheels.glob("*.whl"))
    if len(made) != 1:
        raise UcllmError("build.no-wheel", _("Building {name} left no wheel.").format(name=wanted.name), str(log))
    kept = _keep(wanted, made[0], seconds)
    shutil.rmtree(scratch, ignore_errors=True)
    return kept


def _copy_of(checkout: Path, target: Path) -> Path:
    """The tracked files, as they are checked out: what a build writes beside them stays out of the checkout."""
    argv = ("git", "-C", str(checkout), "checkout-index", "--all", "--force", f"--prefix={target}/")
    done = host.capture(argv, timeout_s=300)
    if done.code != 0:
        raise UcllmError(
            "build.no-source", _("The files of {path} cannot be copied.").format(path=checkout), done.complaint
        )
    return target


def _keep(built: Build, wheel: Path, seconds: float) -> Path:
    """Put the wheel into the cache by one rename."""
    part = built.folder.with_name(f"{built.folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copy2(wheel, part / wheel.name)
    record = {
        "name": built.name,
        "wheel": wheel.name,
        "sha256": sha256_file(wheel),
        "built": time.time(),
        "seconds": round(seconds, 1),
        "inputs": dict(built.inputs),
    }
    (part / "build.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    with contextlib.suppress(OSError):  # another workspace was faster: its wheel is as good
        part.rename(built.folder)
    shutil.rmtree(part, ignore_errors=True)
    return built.folder / wheel.name


def install(wheel: Path, workspace: Workspace, log: Path, environment: Mapping[str, str]) -> None:
    """Put a built wheel into the environment, over whatever is there."""
    argv = install_argv(workspace.python, wheel)
    host.run_logged(argv, log=log, env=environment)


def install_argv(python: Path, wheel: Path) -> tuple[str, ...]:
    """pip, told to install exactly this file."""
    exact = ("--no-deps", "--force-reinstall", "--no-index", "--no-input", "--disable-pip-version-check")
    return (str(python), "-I", "-m", "pip", "install", *exact, str(wheel))
