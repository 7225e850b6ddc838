"""Requirements: one module per part of Step 0, check and fix side by side, in the seed's order.

The module of ``machine.gpu-arch`` is ``machine_gpu_arch``; it offers ``REQUIREMENT``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bootstrap.facts import Facts
from bootstrap.findings import Finding
from bootstrap.profiles import Profile
from bootstrap.workspace import Workspace

#: Tiers in order; each contains those before it.
QUICK, DEEP, SMOKE = "quick", "deep", "smoke"
TIERS = (QUICK, DEEP, SMOKE)

#: What must be true of the nodes of a job together. In no profile: checked where the nodes are named.
NODES = (
    "nodes.reachable",
    "nodes.workspace",
    "nodes.versions",
    "nodes.driver",
    "nodes.gpus",
    "nodes.interfaces",
    "nodes.port",
)
#: The step of those, which is none of the guide's.
NODES_STEP = "nodes"


class Doing(Protocol):
    """What an action may do beside running commands. Whatever goes through it is in the journal, for ``ucllm undo``."""

    def say(self, text: str) -> None:
        """Tell the user something."""

    def move_aside(self, path: Path) -> Path:
        """Move a file, link or folder into the workspace's backups; returns where it is now."""

    def chmod(self, path: Path, mode: int) -> None:
        """Change a file's mode."""


@dataclass(frozen=True)
class Action:
    """One step of a fix: what it does in one line, the exact commands it amounts to, and the doing.

    One that runs in the ``background`` takes long and changes nothing but a cache: other fixes go on beside it.
    ``kept`` is the folder of a cache from which it takes what was made before.
    """

    text: str
    commands: tuple[str, ...]
    act: Callable[[Doing], None] = field(compare=False)
    background: bool = False
    kept: str = ""


@dataclass(frozen=True)
class Requirement:
    """Something Step 0 must have made true.

    ``check`` is pure: it looks at the profile and the facts, and at nothing else; it leaves the finding's id empty.
    ``plan`` lists the actions that make it pass; a requirement without one can only be mended by hand. ``needs`` are
    the ids that must hold first, ``fix_needs`` those that its fix needs beside them (a compiler, say), ``reads`` the
    sections of the facts it looks at. ``inputs`` are what it was made from, in words: where they differ from what the
    journal says, it is made again; what is empty is not known and not compared. ``title`` says what must be true,
    ``why`` what goes wrong otherwise, ``step`` is the step of the guide that it belongs to.
    """

    id: str
    title: str
    why: str
    step: str
    check: Callable[[Profile, Facts], Finding]
    plan: Callable[[Profile, Facts, Workspace], list[Action]] | None = None
    needs: tuple[str, ...] = ()
    fix_needs: tuple[str, ...] = ()
    inputs: Callable[[Profile, Facts], Mapping[str, str]] | None = None
    reads: tuple[str, ...] = ("machine",)
    tier: str = QUICK


def module_of(requirement_id: str) -> str:
    """The module that holds a requirement."""
    return f"{__name__}.{requirement_id.replace('.', '_').replace('-', '_')}"


def load(ids: Iterable[str]) -> list[Requirement]:
    """The requirements with these ids, in this order."""
    found = []
    for item in ids:
        requirement: Requirement = importlib.import_module(module_of(item)).REQUIREMENT
        found.append(requirement)
    return found


def with_needs(ids: Iterable[str], listed: Sequence[str], *, fixing: bool = False) -> list[str]:
    """``ids`` and all that they need, as far as a profile lists it, in the profile's order.

    ``fixing``: also what their fixes need.
    """
    wanted = waiting = set(ids)
    while waiting:
        needed = {
            need
            for item in load(sorted(waiting))
            for need in (*item.needs, *(item.fix_needs if fixing else ()))
            if need in listed
        }
        waiting = needed - wanted
        wanted = wanted | waiting
    return [item for item in listed if item in wanted]
