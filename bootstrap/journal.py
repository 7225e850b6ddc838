"""The journal of what fixes did, ``.ucllm/journal.jsonl``, and how ``ucllm undo`` puts back what they moved."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from bootstrap import host
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _


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
        # Escaped to ASCII: file names may hold bytes that are no text.
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry}) + "\n"
        with self.path.open("a+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            # A line that a killed process left half written must not swallow this one.
            half = stream.read(1) not in (b"", b"\n")
            stream.write(b"\n" * half + line.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All entries of fixes. What is none, such as a line that a killed process left half written, is passed over.

        Raises :class:`UcllmError` when there is a journal that cannot be read.
        """
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            what = _("Cannot read the journal of fixes, {path}.").format(path=self.path)
            look = shlex.join(["ls", "-ld", str(self.path.parent), str(self.path)])
            hint = _("See what lies there: `{command}`").format(command=look)
            raise UcllmError("journal.unreadable", what, error.strerror or str(error), hint) from error
        entries = []
        for line in text.split("\n"):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and type(entry.get("fix")) is int and entry["fix"] > 0:
                entries.append(entry)
        return entries

    def next_fix(self) -> int:
        """The number of the next fix."""
        return 1 + max((entry["fix"] for entry in self.read()), default=0)


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
        # Paths are absolute: in a copy of the workspace they would be the other one's.
        root = str(self.journal.workspace.root)
        self.journal.write(fix=self.fix, requirement=self.requirement, workspace=root, **entry)


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
        return not self.undone and bool(self.modes or any(os.path.lexists(to) for _source, to in self.moves))


def fixes(journal: Journal) -> list[Fix]:
    """The fixes in the journal, oldest first."""
    grouped: dict[int, list[dict[str, Any]]] = {}
    for entry in journal.read():
        if entry.get("workspace", str(journal.workspace.root)) == str(journal.workspace.root):
            grouped.setdefault(entry["fix"], []).append(entry)
    return [
        Fix(
            number,
            _first(entries, "requirement"),
            _first(entries, "time"),
            tuple(_moves(entries)),
            tuple(_modes(entries)),
            any(e.get("status") == "undone" for e in entries),
        )
        for number, entries in sorted(grouped.items())
    ]


def _first(entries: Iterable[Mapping[str, Any]], key: str) -> str:
    return next((entry[key] for entry in entries if isinstance(entry.get(key), str)), "")


#: Statuses that say how an action, or the fix, stands.
_STATES = ("started", "done", "failed", "interrupted", "undone")


@dataclass(frozen=True)
class Latest:
    """The last fix of one requirement: its last action, how that stands, and the seconds of what it finished.

    ``state`` is ``started``, ``done``, ``failed``, ``interrupted`` or ``undone``. One that is only started may have
    been killed: the journal alone cannot tell.
    """

    requirement: str
    fix: int
    action: str
    state: str
    time: str
    seconds: float | None
    error: str


def latest(journal: Journal) -> list[Latest]:
    """The last fix of each requirement, in the order of their numbers."""
    last: dict[str, list[dict[str, Any]]] = {}
    for entry in journal.read():
        name = entry.get("requirement")
        if not isinstance(name, str) or entry.get("status") not in _STATES:
            continue
        known = last.setdefault(name, [])
        if known and known[0]["fix"] != entry["fix"]:
            known.clear()
        known.append(entry)
    found = []
    for name, entries in last.items():
        seconds = [entry["seconds"] for entry in entries if _is_number(entry.get("seconds"))]
        newest = entries[::-1]
        found.append(
            Latest(
                name,
                entries[0]["fix"],
                _first(newest, "action"),
                newest[0]["status"],
                _first(newest, "time"),
                round(sum(seconds), 2) if seconds else None,
                _first(newest[:1], "error"),
            )
        )
    return sorted(found, key=lambda item: item.fix)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _moves(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Path, Path]]:
    for entry in entries:
        source, target = entry.get("from"), entry.get("to")
        if entry.get("status") == "moved" and _is_path(source) and _is_path(target):
            yield Path(source), Path(target)


def _modes(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Path, int]]:
    for entry in entries:
        path, mode = entry.get("path"), entry.get("from")
        if entry.get("status") == "mode" and _is_path(path) and re.fullmatch("[0-7]{4}", str(mode)):
            yield Path(path), int(str(mode), 8)


def _is_path(value: object) -> TypeGuard[str]:
    """Whether the system could have a file of this name."""
    try:
        return isinstance(value, str) and value != "" and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


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
