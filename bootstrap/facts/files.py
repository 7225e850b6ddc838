"""Facts as a file: ``doctor --save-facts`` on a compute node, ``doctor --facts`` on a laptop, or in a bug report."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import re
import shlex
import socket
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bootstrap.facts import FACTS_VERSION, Facts
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.runs import write_text_atomically

#: Names that say nothing about a person or a machine.
_COMMON = {"root", "user", "ubuntu", "localhost", "host", "home", ""}


def save(facts: Facts, path: Path) -> None:
    """Write the facts without the user's name, the host's name and logins in addresses.

    Raises :class:`UcllmError` when the file cannot be written, and for what :func:`require_place` refuses.
    """
    require_place(path)
    text = json.dumps(
        redacted(facts.as_json(), [node.host for node in facts.nodes.nodes]),
        indent=1,
        ensure_ascii=False,
        sort_keys=True,
    )
    # File names may hold bytes that are no text, and then no facts file could hold them.
    text = text.encode("utf-8", "replace").decode("utf-8")
    try:
        write_text_atomically(path, text + "\n")
    except OSError as error:
        what = _("Cannot write {path}.").format(path=path)
        raise UcllmError("facts.not-writable", what, str(error.strerror or error)) from error


def require_place(path: Path) -> None:
    """Raise :class:`UcllmError` unless ``path`` is a regular file or a new name in a folder that exists.

    The file is written by rename, which would put it in the place of a device, a pipe or a link.
    """
    what = _("Cannot write {path}.").format(path=path)
    if not os.path.isdir(path.parent):  # noqa: PTH112  no error for a folder above that cannot be looked into
        hint = _("Make the folder first: `{command}`").format(command=shlex.join(["mkdir", "-p", str(path.parent)]))
        raise UcllmError("facts.not-writable", what, _("There is no folder {path}.").format(path=path.parent), hint)
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        hint = _("Name a new file, or a file to replace.")
        raise UcllmError("facts.not-writable", what, _("It is not a regular file."), hint)


def redacted(value: Any, hosts: Sequence[str] = ()) -> Any:
    """``value`` with every text in it made anonymous; the ``hosts`` of a job become ``node-0``, ``node-1``, …"""
    replacements = [(re.compile(re.escape(str(Path.home())) + r"(?=/|$|\W)"), "~")]
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    nodes = [(name, f"node-{number}") for number, name in enumerate(hosts)]
    here = socket.gethostname()
    for name, instead in (*nodes, (user, "user"), (here, "host"), (here.split(".")[0], "host")):
        if name.lower() not in _COMMON:
            replacements.append((re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])"), instead))
    replacements.append((re.compile(r"(?<=://)[^/@\s]+@"), ""))

    def clean(item: Any) -> Any:
        if isinstance(item, str):
            for pattern, instead in replacements:
                item = pattern.sub(instead, item)
            return item
        if isinstance(item, dict):
            return {clean(key): clean(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [clean(inner) for inner in item]
        return item

    return clean(value)


def load(path: Path) -> Facts:
    """Read saved facts. Raises :class:`UcllmError` for what is no facts file, or one of a newer form."""
    # Never a name that holds something already: it would be written over.
    hint = _("Make one with `ucllm doctor --save-facts {path}`.").format(path="facts.json" if path.exists() else path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        # JSON can name halves of characters, which nothing can print.
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except (OSError, ValueError, RecursionError) as error:
        raise UcllmError(
            "facts.unreadable", _("Cannot read the facts in {path}.").format(path=path), str(error), hint
        ) from error
    if not isinstance(data, dict) or "workspace" not in data:
        raise UcllmError("facts.unreadable", _("{path} holds no facts.").format(path=path), hint=hint)
    if data.get("facts_version") != FACTS_VERSION:
        raise UcllmError(
            "facts.version",
            _("{path} was written by another version of ucllm.").format(path=path),
            _("Its form is {found}, this ucllm reads {known}.").format(
                found=data.get("facts_version"), known=FACTS_VERSION
            ),
            hint,
        )
    try:
        facts: Facts = decode(Facts, data, "facts")
    except (TypeError, ValueError, OverflowError) as error:
        raise UcllmError(
            "facts.unreadable", _("Cannot read the facts in {path}.").format(path=path), str(error), hint
        ) from error
    return facts


def decode(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``kind``; keys that this version does not know are passed over.

    Raises ``TypeError`` for a value of another type, saying ``where`` it is.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        return decode(next(item for item in inner if item is not type(None)), value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"{where}: {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        known = {key: decode(hints[key], item, f"{where}.{key}") for key, item in value.items() if key in hints}
        return kind(**known)
    if origin is tuple and isinstance(value, list):
        return tuple(decode(inner[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(key): decode(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(kind, type) or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{where}: {type(value).__name__}")
    return value
