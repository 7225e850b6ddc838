"""Moving aside, as a user types it: what :meth:`bootstrap.requirements.Doing.move_aside` amounts to."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from bootstrap.facts import Facts
from bootstrap.workspace import Workspace


def commands(facts: Facts, *paths: str) -> tuple[str, ...]:
    """Move ``paths`` into the workspace's backups, which may be yet to be made; what lies there is not written over."""
    make, move = _argvs(facts)
    return shlex.join(make), shlex.join((*move, *paths))


def matching(facts: Facts, folders: Sequence[str], names: str) -> tuple[str, ...]:
    """The same for what lies in ``folders`` under a name that the extended regular expression ``names`` matches."""
    make, move = _argvs(facts)
    found = ("find", *folders, "-maxdepth", "1", "-regextype", "posix-extended", "-regex", f".*/({names})")
    return shlex.join(make), shlex.join((*found, "-exec", *move, "{}", "+"))


def _argvs(facts: Facts) -> tuple[tuple[str, ...], tuple[str, ...]]:
    backups = str(Workspace(Path(facts.workspace)).backups)
    return ("mkdir", "-p", backups), ("mv", "--backup=numbered", "-t", backups)
