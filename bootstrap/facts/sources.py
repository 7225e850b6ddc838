"""The profile's git checkouts, each read by its own thread. Nothing is written, not even git's index."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bootstrap import host
from bootstrap.facts import Checkout, SourcesFacts
from bootstrap.facts.collect import Request
from bootstrap.profiles import Source
from pipeline.i18n import _

#: Seconds for one git command; on a cold network file system `status` looks at some thousand files.
TIMEOUT_S = 25.0
#: Variables by which whoever started us (a git hook, say) would point git at another repository.
_STRAY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE")


def collect(request: Request) -> SourcesFacts:
    """Every checkout of the profile."""
    sources = request.profile.sources
    if not sources:
        return SourcesFacts()
    with ThreadPoolExecutor(max_workers=len(sources)) as pool:
        found = pool.map(lambda source: read(request.workspace.root / source.folder, source), sources.values())
        return SourcesFacts(dict(zip(sources, found)))


def git(*args: str) -> tuple[str, ...]:
    """A git command that runs no hook and no monitor of the checkout's, whatever the environment says."""
    unset = [word for name in _STRAY for word in ("-u", name)]
    return ("env", *unset, "git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *args)


def environment(path: Path) -> dict[str, str]:
    """Variables for git in ``path``: it takes no locks, asks nobody, and looks for no repository further up."""
    above = os.pathsep.join({str(path.absolute().parent), str(path.resolve().parent)})
    return {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_CEILING_DIRECTORIES": above}


def read(path: Path, source: Source) -> Checkout:
    """The checkout in ``path``. What git cannot say is in ``error``, with an empty ``head`` if not even that."""
    if not os.path.lexists(path):
        return Checkout(str(path), "absent")
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        return Checkout(str(path), "ready", error=_("the folder may not be read"))
    if not os.path.lexists(path / ".git"):
        return Checkout(str(path), "foreign")
    if shutil.which("git") is None:
        return Checkout(str(path), "ready", error=_("git was not found on PATH"))
    try:
        return _ask(path, source)
    except (OSError, TimeoutError) as error:
        return Checkout(str(path), "ready", error=str(error))


def _ask(path: Path, source: Source) -> Checkout:
    variables = environment(path)

    def ask(*args: str) -> host.Done:
        return host.capture(git("-C", str(path), *args), timeout_s=TIMEOUT_S, env=variables)

    head = ask("rev-parse", "--verify", "HEAD^{commit}")
    if head.code != 0:
        said = _last(head)
        # Another user's checkout: git answers nothing about it, so nothing is known of it.
        state = "ready" if "dubious ownership" in head.stderr or "ermission denied" in head.stderr else "partial"
        return Checkout(str(path), state, error=said)
    commit = head.stdout.strip()
    # Every object of this one commit; those that are missing have a question mark.
    objects = ask("rev-list", "--objects", "--missing=print", "-1", commit)
    missing = [line for line in objects.stdout.splitlines() if line.startswith("?")]
    if objects.code != 0 or missing:
        said = _("{count} objects of the commit are missing").format(count=len(missing)) if missing else _last(objects)
        return Checkout(str(path), "partial", commit, error=said)
    if (path / ".git").is_dir() and not (path / ".git" / "index").exists():
        # A clone that was interrupted before its files were written.
        return Checkout(str(path), "partial", commit, error=_("the checkout of its files was interrupted"))
    tag = ask("rev-parse", "--verify", "--quiet", f"refs/tags/{source.tag}^{{commit}}")
    status = ask("status", "--porcelain=v1", "-z", "--untracked-files=no", "--ignore-submodules=all", "--no-renames")
    if status.code != 0:
        return Checkout(str(path), "partial", commit, tag.stdout.strip(), error=_last(status))
    changed = tuple(entry[3:] for entry in status.stdout.split("\0") if entry)
    return Checkout(str(path), "ready", commit, tag.stdout.strip(), changed)


def _last(done: host.Done) -> str:
    """The line of git's that says most: its first fatal one."""
    lines = done.stderr.strip().splitlines()
    fatal = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return (fatal or lines or [f"git: exit {done.code}"])[0]
