"""Requirements: one module per part of Step 0, check and fix side by side, in the seed's order."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bootstrap.facts import Facts
from bootstrap.findings import Finding
from bootstrap.profiles import Profile
from bootstrap.workspace import Workspace

#: Tells the user what is being done right now.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Action:
    """One step of a fix: what it does in one line, the exact commands it amounts to, and the doing."""

    text: str
    commands: tuple[str, ...]
    act: Callable[[Say], None] = field(compare=False)


@dataclass(frozen=True)
class Requirement:
    """Something Step 0 must have made true.

    ``check`` is pure: it looks at the profile and the facts, and at nothing else. ``plan`` lists the actions that make
    it pass; a requirement without a plan can only be mended by hand. ``needs`` are the ids that must hold first.
    """

    id: str
    title: str
    step: str
    check: Callable[[Profile, Facts], Finding]
    plan: Callable[[Profile, Facts, Workspace], list[Action]] | None = None
    needs: tuple[str, ...] = ()


_MODULES: Mapping[str, str] = {
    "env.python": "bootstrap.requirements.env_python",
    "env.packages": "bootstrap.requirements.env_packages",
}


def load(ids: tuple[str, ...]) -> list[Requirement]:
    """The requirements with these ids, in this order."""
    found = []
    for item in ids:
        requirement: Requirement = importlib.import_module(_MODULES[item]).REQUIREMENT
        found.append(requirement)
    return found
