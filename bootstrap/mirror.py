"""A mirror: one folder, or its copy on a web server, with everything that a profile fetches, and an index of it.

The reading side. With a mirror nothing else is asked: a file is found in the index by its sha256, which is compared
again when it arrives. :mod:`bootstrap.mirror_create` is the writing side.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from bootstrap import host
from bootstrap.profiles import Source
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import _

INDEX = "index.json"
VERSION = 1
#: Where wheels and source distributions lie, and the page by which pip finds them over http.
WHEELS, PAGE = "wheels", "wheels/index.html"


@dataclass(frozen=True)
class Entry:
    """One file: ``path`` in the mirror, ``url`` where it was published (empty: made here, or found in a folder)."""

    kind: str
    name: str
    path: str
    sha256: str
    size: int
    url: str


@dataclass(frozen=True)
class Index:
    """What a mirror has: its files by path, and for each profile the Pythons and the GPU it was made for."""

    files: Mapping[str, Entry] = field(default_factory=dict)
    profiles: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def by_sha256(self) -> dict[str, Entry]:
        """The files by their hash."""
        return {entry.sha256: entry for entry in self.files.values()}


def parse(text: str | bytes) -> Index:
    """An index from its JSON. Raises ``ValueError`` for what is none, and for a path that leads out of the mirror."""
    try:
        data = json.loads(text)
        if data["mirror_version"] != VERSION:
            raise ValueError(_("it is of another version of ucllm: {version}").format(version=data["mirror_version"]))
        entries = [Entry(**item) for item in data["files"]]
        profiles = dict(data["profiles"])
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(_("it is no index of a mirror")) from error
    for entry in entries:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(_("{path} leads out of the mirror").format(path=entry.path))
    return Index({entry.path: entry for entry in entries}, profiles)


@functools.lru_cache(maxsize=4)
def index(mirror: str) -> Index:
    """The index of a mirror, read once. Raises :class:`UcllmError` when there is none that can be read."""
    try:
        return parse(_read(_address(mirror, INDEX)) if "://" in mirror else (Path(mirror) / INDEX).read_bytes())
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not Path(mirror).is_dir():
            why = _("There is no folder {path}.").format(path=mirror)
        elif isinstance(error, FileNotFoundError):
            why = _("It has no {file}: it is no mirror, or `ucllm mirror create` has not finished.").format(file=INDEX)
        else:
            why = f"{INDEX}: {getattr(error, 'strerror', None) or error}"
        raise UcllmError(
            "mirror.unreadable",
            _("The mirror {mirror} cannot be read.").format(mirror=host.without_logins(mirror)),
            why,
            _("Name another with `--mirror`, or make it: `ucllm mirror create DIR --profile NAME`."),
        ) from error


def _read(address: str) -> bytes:
    """What lies there. Tried again as :func:`host.fetch` does. Raises ``OSError`` with the reason."""
    import http.client
    import urllib.request

    for wait in (*host.RETRY_WAITS_S, None):
        try:
            with urllib.request.urlopen(host.request(address, {}), timeout=host.TIMEOUT_S) as answer:  # noqa: S310  the user's own setting
                body: bytes = answer.read()
                return body
        except (OSError, http.client.HTTPException) as error:
            reason, final = host.failure(error)
            if wait is None or final:
                raise OSError(reason) from error
        time.sleep(wait)
    raise AssertionError


def _address(mirror: str, path: str) -> str:
    """The address of a file in the mirror."""
    if "://" in mirror:
        return f"{mirror.rstrip('/')}/{urllib.parse.quote(path)}"
    return (Path(mirror) / path).as_uri()


def fetch(
    workspace: Workspace,
    url: str,
    target: Path,
    sha256: str,
    *,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """:func:`host.fetch`; where the workspace has a mirror, from there and from nowhere else, found by its sha256.

    Raises :class:`UcllmError`, also when the mirror lacks the file.
    """
    if not workspace.mirror:
        host.fetch(url, target, sha256, progress=progress)
        return
    entry = index(workspace.mirror).by_sha256.get(sha256)
    if entry is None:
        raise _lacking(workspace, target.name)
    get(workspace, entry, target, progress)


def get(
    workspace: Workspace,
    entry: Entry,
    target: Path,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Fetch a file of the workspace's mirror. Raises :class:`UcllmError`."""
    try:
        host.fetch(_address(workspace.mirror, entry.path), target, entry.sha256, progress=progress)
    except UcllmError as error:
        problem = error.problems[0]
        if problem.code == "fetch.not-writable":
            raise
        why = _("It came from the mirror {mirror}: {reason}")
        raise UcllmError(
            problem.code,
            problem.what,
            why.format(mirror=host.without_logins(workspace.mirror), reason=problem.why),
            advice(workspace),
        ) from error


def advice(workspace: Workspace) -> str:
    """What to do about a mirror that gives a wrong file, or lacks one."""
    text = _("Look at the mirror where it lies, `ucllm mirror verify DIR`, and complete it: {command}.")
    return text.format(command=_create(workspace))


def _lacking(workspace: Workspace, name: str) -> UcllmError:
    return UcllmError(
        "mirror.lacks",
        _("The mirror {mirror} has no {name}.").format(mirror=host.without_logins(workspace.mirror), name=name),
        _("With a mirror nothing else is asked."),
        _("Complete it where the network can be reached: {command}.").format(command=_create(workspace)),
    )


def _create(workspace: Workspace) -> str:
    """The command that completes the mirror."""
    folder = "DIR" if "://" in workspace.mirror else shlex.quote(workspace.mirror)
    return f"`ucllm mirror create {folder} --profile {shlex.quote(workspace.recorded_profile() or 'NAME')}`"


def pip_variables(workspace: Workspace) -> dict[str, str]:
    """Variables that let pip look in the mirror only; none without a mirror. An empty one counts as not set.

    Raises :class:`UcllmError` when the mirror cannot be read: pip would say that there are no such packages.
    """
    if not workspace.mirror:
        return {}
    index(workspace.mirror)
    parts = urllib.parse.urlsplit(workspace.mirror)
    links = _address(workspace.mirror, PAGE if "://" in workspace.mirror else WHEELS)
    return {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": links,
        "PIP_INDEX_URL": "",
        "PIP_EXTRA_INDEX_URL": "",
        # pip passes over an http server that it was not told to trust; the locks' hashes decide what is installed.
        "PIP_TRUSTED_HOST": parts.netloc.rpartition("@")[2] if parts.scheme == "http" else "",
    }


def bundle_path(source: Source) -> str:
    """Where a mirror has the git bundle of a source."""
    return f"git/{source.folder}-{source.commit[:12]}.bundle"


def git_origin(workspace: Workspace, source: Source) -> str:
    """What git clones from: the profile's address, or the file that :func:`git_source` gets from the mirror."""
    if not workspace.mirror:
        return source.url
    return str(workspace.state / "cache" / "mirror" / PurePosixPath(bundle_path(source)).name)


def git_source(workspace: Workspace, source: Source) -> str:
    """As :func:`git_origin`, and the bundle is there. Raises :class:`UcllmError` when the mirror does not give it."""
    origin = git_origin(workspace, source)
    if workspace.mirror:
        entry = index(workspace.mirror).files.get(bundle_path(source))
        if entry is None:
            raise _lacking(workspace, bundle_path(source))
        get(workspace, entry, Path(origin))
    return origin


def solution_path(inputs: str) -> str:
    """Where a mirror has what a profile's conda packages come to; ``inputs`` is the sha256 of what they are made of."""
    return f"conda/solution-{inputs[:16]}.json"


def fetch_solution(workspace: Workspace, inputs: str, target: Path) -> None:
    """Get what the profile's conda packages came to when the mirror was made. Raises :class:`UcllmError`."""
    entry = index(workspace.mirror).files.get(solution_path(inputs))
    if entry is None:
        raise _lacking(workspace, _("solution of these conda packages"))
    get(workspace, entry, target)


def dataset_path(file: str) -> str:
    """Where a mirror has a dataset that is one file."""
    return f"datasets/{file}"


def fetch_dataset(workspace: Workspace, name: str, target: Path) -> None:
    """Get a dataset that is one file, as it was when the mirror was made. Raises :class:`UcllmError`."""
    entry = index(workspace.mirror).files.get(dataset_path(name))
    if entry is None:
        raise _lacking(workspace, name)
    get(workspace, entry, target)


def built(workspace: Workspace, name: str) -> list[Entry]:
    """The files of an entry of the wheel cache, as far as the workspace's mirror has it."""
    known = index(workspace.mirror).files if workspace.mirror else {}
    return [entry for path, entry in known.items() if PurePosixPath(path).parent == PurePosixPath("built", name)]
