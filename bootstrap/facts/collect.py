"""Collect facts: every section by its own thread, each with a time limit, so that one that hangs costs only itself."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bootstrap.facts import Facts
from bootstrap.profiles import Profile
from bootstrap.workspace import Workspace
from pipeline.i18n import _

if TYPE_CHECKING:
    from bootstrap.facts.nodes import Job
    from pipeline.config import Config

#: Sections of the quick tier and how long each may take, in seconds. A section's module has the section's name and
#: offers ``collect(request)``, which returns its dataclass.
TIMEOUTS_S: Mapping[str, float] = {
    "machine": 10,
    "gpu": 10,
    "tools": 15,
    "network": 5,
    "conda": 10,
    "env": 35,
    "binaries": 45,
    "sources": 60,
    "builds": 60,
    "access": 5,
    "data": 30,
    "journal": 5,
}
#: Sections of the deeper tiers; collected only when asked for.
DEEP_TIMEOUTS_S: Mapping[str, float] = {"deep": 900, "smoke": 900}
#: Collected only where the nodes of a job are named; more than a node's own limit (:mod:`bootstrap.facts.nodes`).
NODES_TIMEOUTS_S: Mapping[str, float] = {"nodes": 100}


@dataclass
class Request:
    """What a collector is told: for which profile and workspace, and the answers of the others.

    ``config`` is the training that is about to start, where there is one: the data section looks at its files only.
    ``job`` are the nodes to ask, where some are named.
    """

    profile: Profile
    workspace: Workspace
    config: Config | None = None
    job: Job | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    ready: dict[str, threading.Event] = field(default_factory=dict)

    def section(self, name: str) -> Any:
        """Another section, waited for. One that was not asked for, or failed, is its default."""
        if name in self.ready:
            self.ready[name].wait()
        return self.answers.get(name, getattr(Facts(""), name))


def collect(
    profile: Profile,
    workspace: Workspace,
    sections: Sequence[str] = tuple(TIMEOUTS_S),
    *,
    config: Config | None = None,
    job: Job | None = None,
) -> Facts:
    """The facts of this machine and workspace; ``sections`` limits them. Nothing that fails here stops the rest."""
    request = Request(profile, workspace, config, job)
    known = {**TIMEOUTS_S, **DEEP_TIMEOUTS_S, **NODES_TIMEOUTS_S}
    limits = {name: known[name] for name in sections}
    request.ready.update({name: threading.Event() for name in sections})
    errors: dict[str, str] = {}
    took: dict[str, float] = {}

    def work(name: str) -> None:
        began = time.perf_counter()
        try:
            answer = importlib.import_module(f"bootstrap.facts.{name}").collect(request)
            request.answers[name] = answer
        except Exception as error:  # noqa: BLE001  a collector that crashes is a reason, not the end of the others
            errors[name] = f"{type(error).__name__}: {error}"
        took[name] = round((time.perf_counter() - began) * 1000, 1)
        request.ready[name].set()

    began = time.monotonic()
    for name in sections:
        # Daemons: a collector that hangs must not keep the tool from ending.
        threading.Thread(target=work, args=(name,), name=f"facts-{name}", daemon=True).start()
    for name, limit in limits.items():
        left = max(0.0, began + limit - time.monotonic())
        if not request.ready[name].wait(left):
            errors[name] = _("no answer in {seconds} s").format(seconds=round(limit))
            request.ready[name].set()  # who waits for it goes on without
    answers = {name: answer for name, answer in request.answers.items() if name not in errors}
    return Facts(str(workspace.root), profile.name, **answers, collected=tuple(sections), errors=errors, took_ms=took)
