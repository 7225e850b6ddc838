"""Facts of the environment: one child of its own Python, which answers in JSON and imports nothing heavy."""

from __future__ import annotations

import errno
import os
import re
import shlex
import time
from pathlib import Path
from typing import Any

from bootstrap import host
from bootstrap.facts import Deepspeed, Dist, EnvFacts, Torch
from bootstrap.facts.answer import ask
from bootstrap.facts.collect import Request
from pipeline.i18n import _

#: Lies in an environment while it is being made: what has it was interrupted, whatever else it holds.
UNFINISHED = ".ucllm-unfinished"
PROBE = Path(__file__).parent / "probe.py"
START_UP = Path(__file__).parent / "start_up.py"
TIMEOUT_S = 30.0
#: No such program, or none that can be run here. Whatever else keeps a program from starting says nothing about it.
_NO_PROGRAM = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENOEXEC, errno.ELIBBAD})
_PLACE = re.compile(r"^\s*(?:export )?VIRTUAL_ENV=(['\"]?/.*)$", re.MULTILINE)


def collect(request: Request) -> EnvFacts:
    """Ask the environment's Python what is installed. One that cannot answer is ``broken``, with the reason.

    Raises ``OSError`` where the machine is the reason: a broken environment is replaced, a slow one must not be.
    """
    return read(request.workspace.env, timeout_s=TIMEOUT_S)


def read(env: Path, *, timeout_s: float = TIMEOUT_S) -> EnvFacts:
    """The facts of the environment in ``env``. Raises as :func:`collect`, ``TimeoutError`` when it does not answer."""
    python = env / "bin" / "python"
    if not os.path.lexists(env):  # no exception for what lies in a folder that may not be read
        return EnvFacts(str(env), "absent")
    if (env / UNFINISHED).exists():
        return EnvFacts(str(env), "broken", error=_("making it was interrupted"))
    elsewhere = _elsewhere(env)
    if elsewhere:
        why = _("it was made in {path}, and its commands start the Python there").format(path=elsewhere)
        return EnvFacts(str(env), "broken", error=why)
    began = time.monotonic()
    try:
        said, done = ask(str(python), PROBE, timeout_s=timeout_s)
    except OSError as error:  # also TimeoutError
        if error.errno not in _NO_PROGRAM:
            raise
        return EnvFacts(str(env), "broken", error=str(error))
    if not said:
        return EnvFacts(str(env), "broken", error=_why_silent(str(python), done, began + timeout_s - time.monotonic()))
    return _facts(env, said[-1])


def made_in(env: Path) -> str:
    """Where a virtual environment was made, as its ``bin/activate`` says; empty where that says no path."""
    try:
        said = _PLACE.search((env / "bin" / "activate").read_text(encoding="utf-8", errors="surrogateescape"))
        words = shlex.split(said[1]) if said else []
    except (OSError, ValueError):
        return ""
    return words[0] if words else ""


def _elsewhere(env: Path) -> str:
    """The place that the environment was copied or moved from; empty if it is where it was made, by any name."""
    place = made_in(env)
    try:
        return "" if not place or env.samefile(place) else place
    except (FileNotFoundError, NotADirectoryError):
        return place
    except OSError:  # a folder that may not be looked into, a file system that does not answer
        return ""


def _why_silent(python: str, done: host.Done, timeout_s: float) -> str:
    """Why the probe has said nothing: Python ended before it, or is none."""
    why = done.complaint
    if done.code == 0:
        why = _("its answer cannot be read: {error}").format(error=(done.stdout or done.stderr).strip()[-200:])
    try:
        said, _done = ask(python, START_UP, timeout_s=timeout_s, options=("-S",))
    except (OSError, TimeoutError):  # what the other child said stands
        return why
    if said and said[-1]:
        return _("{path}, which Python runs when it starts, ends it: {why}").format(path=said[-1], why=why)
    return why


def _facts(env: Path, data: Any) -> EnvFacts:
    """The probe's answer as facts. Whether this kind of environment is the right one is for the checks to say."""
    return EnvFacts(
        path=str(env),
        state="ready",
        kind=data["kind"],
        python=data["executable"],
        prefix=data["prefix"],
        version=data["version"],
        extension_suffix=data["extension_suffix"],
        include=data["include"],
        has_headers=data["has_headers"],
        has_pip=bool(data["pip"]),
        pip_python=data["pip_python"],
        base=data["base"],
        adopted=tuple(data["adopted"]),
        dists={
            name: Dist(version, whole, tuple(requires)) for name, (version, whole, requires) in data["dists"].items()
        },
        torch=Torch(**data["torch"]) if data["torch"] else None,
        deepspeed=_deepspeed(data["deepspeed"]) if data["deepspeed"] else None,
        extensions={name: tuple(paths) for name, paths in data["extensions"].items()},
        user_site=data["user_site"],
        user_dists=data["user_dists"],
        foreign_paths=tuple(data["foreign_paths"]),
        foreign_first=tuple(data["foreign_first"]),
        foreign_sources=data["foreign_sources"],
        shadows=tuple(data["shadows"]),
    )


def _deepspeed(data: Any) -> Deepspeed:
    installed, compatible = (
        {str(name): bool(value) for name, value in data[key].items()} for key in ("installed", "compatible")
    )
    return Deepspeed(data["version"], installed, compatible, data["torch"], data["cuda"], tuple(data["libraries"]))
