"""The journal of what fixes did, ``.ucllm/journal.jsonl``, and how ``ucllm undo`` puts back what they moved."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap import host
from bootstrap.workspace import Workspace


@dataclass
class Journal:
    """Append-only record of actions, one JSON object a line, on disk before the next action starts.

    Every fix of one requirement has a number, ``fix``. Its lines have a ``status``: ``started``, ``moved`` (with
    ``from`` and ``to``), ``mode`` (with ``path``, ``from`` and ``to``), ``done``, ``failed``, ``interrupted``,
    ``undone``.
    """

    workspace: Workspace

    @property
    def path(self) -> Path:
        """The file."""
        return self.workspace.state / "journal.jsonl"

    def write(self, **entry: Any) -> None:
        """Append one entry, stamped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All entries. A line that a killed process left half written is passed over."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
        return entries

    def next_fix(self) -> int:
        """The number of the next fix."""
        return 1 + max((int(entry.get("fix", 0)) for entry in self.read()), default=0)


@dataclass(frozen=True)
class Recorder:
    """The :class:`bootstrap.requirements.Doing` of one fix: says, moves and changes modes, and writes it down.

    A move is written down before it is made: a process killed in between leaves an entry whose target is not there,
    which undo passes over; it never leaves a moved file that nobody knows of.
    """

    journal: Journal
    fix: int
    requirement: str
    tell: Callable[[str], None]

    def say(self, text: str) -> None:
        """Tell the user something."""
        self.tell(text)

    def move_aside(self, path: Path) -> Path:
        """Move a file, link or folder into the workspace's backups; returns where it is now."""
        backups = self.journal.workspace.backups
        target = host.free_name(path, backups)
        self._write(status="moved", **{"from": str(path), "to": str(target)})
        host.move(path, target)
        return target

    def chmod(self, path: Path, mode: int) -> None:
        """Change a file's mode."""
        before = path.stat().st_mode & 0o7777
        self._write(status="mode", path=str(path), **{"from": f"{before:04o}", "to": f"{mode:04o}"})
        path.chmod(mode)

    def _write(self, **entry: Any) -> None:
        self.journal.write(fix=self.fix, requirement=self.requirement, **entry)


@dataclass(frozen=True)
class Fix:
    """What one fix changed that can be put back: moves as (from, to), modes as (path, the mode it had)."""

    number: int
    requirement: str
    time: str
    moves: tuple[tuple[Path, Path], ...]
    modes: tuple[tuple[Path, int], ...]
    undone: bool

    @property
    def can_be_undone(self) -> bool:
        """Whether there is something to put back, and it was not put back yet."""
        return not self.undone and bool(self.modes or any(os.path.lexists(to) for _from, to in self.moves))


def fixes(journal: Journal) -> list[Fix]:
    """The fixes in the journal, oldest first."""
    grouped: dict[int, list[dict[str, Any]]] = {}
    for entry in journal.read():
        if "fix" in entry:
            grouped.setdefault(int(entry["fix"]), []).append(entry)
    return [
        Fix(
            number,
            str(entries[0].get("requirement", "")),
            str(entries[0].get("time", "")),
            tuple((Path(e["from"]), Path(e["to"])) for e in entries if e.get("status") == "moved"),
            tuple((Path(e["path"]), int(e["from"], 8)) for e in entries if e.get("status") == "mode"),
            any(e.get("status") == "undone" for e in entries),
        )
        for number, entries in sorted(grouped.items())
    ]


def undo(journal: Journal, fix: Fix) -> list[tuple[Path, Path]]:
    """Put back what ``fix`` moved, newest first; what stands there now is moved aside first. Returns (from, to)."""
    put_back = []
    for source, target in reversed(fix.moves):
        if not os.path.lexists(target):
            continue
        if os.path.lexists(source):
            host.move(source, host.free_name(source, journal.workspace.backups))
        source.parent.mkdir(parents=True, exist_ok=True)
        host.move(target, source)
        put_back.append((target, source))
    for path, mode in reversed(fix.modes):
        if path.exists():
            path.chmod(mode)
            put_back.append((path, path))
    journal.write(fix=fix.number, requirement=fix.requirement, status="undone")
    return put_back
