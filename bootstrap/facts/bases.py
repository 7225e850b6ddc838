"""The Pythons that the shell offers to a profile that adopts one: each says itself what it has, nothing is imported."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrap.facts import Base, Torch
from bootstrap.facts.answer import ask
from bootstrap.versions import minor

if TYPE_CHECKING:
    from bootstrap.facts.collect import Request

PROBE = Path(__file__).parent / "probe.py"
#: For all of them together, in seconds: below the section's own limit.
TIMEOUT_S = 8.0


def collect(request: Request, errors: dict[str, str]) -> tuple[Base, ...]:
    """The active Python and the others, in the order in which they are preferred, up to the first that can be adopted.

    The workspace's own environment is left out. One that hangs or cannot be started is an entry of ``errors``.
    """
    end = time.monotonic() + TIMEOUT_S
    own = os.path.realpath(request.workspace.env)
    found: dict[str, Base] = {}
    for python in candidates(os.environ, request.profile.pythons):
        try:
            said, _done = ask(python, PROBE, timeout_s=max(0.1, end - time.monotonic()))
        except OSError as error:  # also TimeoutError
            errors[f"python {python}"] = str(error)
            continue
        for data in said:  # one; none from what is no Python 3
            base = _base(data)
            if os.path.realpath(base.prefix) == own:
                continue
            found.setdefault(base.prefix, base)
            if can_be_adopted(base, request.profile.pythons):
                return tuple(found.values())
    return tuple(found.values())


def can_be_adopted(base: Base, pythons: tuple[str, ...]) -> bool:
    """Whether it has torch and is of a supported version."""
    return base.torch is not None and minor(base.version) in pythons


def candidates(environment: Mapping[str, str], pythons: tuple[str, ...]) -> Iterator[str]:
    """Paths of Pythons: the active one, that of an active environment, those named with a version, the tool's own."""
    path = environment.get("PATH", os.defpath)
    active = [environment[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if environment.get(name)]
    names = [
        *(shutil.which(name, path=path) for name in ("python3", "python")),
        *(shutil.which(f"{prefix}/bin/python") for prefix in active),
        *(shutil.which(f"python{version}", path=path) for version in reversed(pythons)),
        sys.executable,
    ]
    seen = set()
    for name in names:
        # A virtual environment's Python is a link to another's: where the link lies tells them apart.
        key = (os.path.realpath(os.path.dirname(name)), os.path.realpath(name)) if name else None  # noqa: PTH120  text
        if name and key not in seen:
            seen.add(key)
            yield name


def _base(data: Any) -> Base:
    """The probe's answer."""
    return Base(
        path=data["executable"],
        version=data["version"],
        prefix=data["prefix"],
        kind=data["kind"],
        folders=tuple(data["folders"]),
        torch=Torch(**data["torch"]) if data["torch"] else None,
        system_site=data["system_site"],
        user_torch=not data["torch"] and "torch" in data["user_dists"],
    )
