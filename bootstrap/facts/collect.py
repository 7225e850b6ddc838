"""Collect all facts, the two reads side by side."""

from __future__ import annotations

import dataclasses
import threading

from bootstrap.facts import EnvFacts, Facts, environment, host
from bootstrap.profiles import Profile
from bootstrap.workspace import Workspace
from pipeline.i18n import _


def collect(profile: Profile, workspace: Workspace) -> Facts:
    """The facts of this machine and workspace. The environment's child works while we read the host."""
    answer: list[EnvFacts] = []
    reader = threading.Thread(target=lambda: answer.append(environment.collect(workspace.env)))
    reader.start()
    machine = host.collect(workspace.root)
    supported = any(
        item.version.startswith(f"{version}.") for item in machine.interpreters for version in profile.pythons
    )
    if not supported:
        others = host.other_interpreters(profile.pythons)
        machine = dataclasses.replace(machine, interpreters=(*machine.interpreters, *others))
    reader.join()
    read = answer[0] if answer else EnvFacts(str(workspace.env), "broken", error=_("it could not be read"))
    return Facts(str(workspace.root), machine, read)
