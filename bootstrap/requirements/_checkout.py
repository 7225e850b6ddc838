"""The checkouts of Step 0: each is there, whole, at the profile's commit, with nothing tracked changed.

One module a checkout names it (``source_megatron`` and so on). The commit decides, never the tag: a tag can be moved.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from bootstrap import host, mirror
from bootstrap.facts import Checkout, Facts
from bootstrap.facts import sources as reader
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown
from bootstrap.profiles import Profile, Source
from bootstrap.requirements import Action, Doing, Requirement
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.i18n import N_, _

#: How many changed files a finding names.
SHOWN = 5


def requirement(requirement_id: str, key: str, title: str, step: str) -> Requirement:
    """The requirement for the checkout that ``profile.sources`` calls ``key``."""

    def check(profile: Profile, facts: Facts) -> Finding:
        return _check(key, profile, facts)

    def plan(profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
        return _plan(requirement_id, key, profile, facts, workspace)

    why = N_("Another commit trains another model, or fails late; a half clone fails in the middle of a build.")
    # Without git nothing can be fetched: machine.build-tools looks for it, and says how to install it.
    needs = ("machine.build-tools",)
    return Requirement(requirement_id, title, why, step, check, plan, needs, reads=("sources",))


def _check(key: str, profile: Profile, facts: Facts) -> Finding:
    source, found = profile.sources.get(key), facts.sources.checkouts.get(key)
    if source is None:
        return skipped(_("The profile has no such source."), key)
    if found is None:
        return unknown(_("The facts hold nothing about it."), (key,))
    wanted = _("wanted commit {commit} (tag {tag}) in {path}").format(
        commit=source.commit[:12], tag=source.tag, path=found.path
    )
    if found.state == "ready" and found.error:
        text = _("If the folder is yours to trust, tell git so.")
        trust = (shlex.join(("git", "config", "--global", "--add", "safe.directory", found.path)),)
        remedy = Remedy(text, trust) if "dubious ownership" in found.error else None
        return unknown(_("git could not read the checkout."), (wanted, found.error), remedy)
    wrong = _wrong(source, found)
    if wrong:
        text, steps = _steps(source, found)
        return fail(wrong[0], (wanted, *wrong[1:]), Remedy(text, steps, automatic=True, needs=_needs(steps)))
    place = source.tag or source.commit[:12]
    return ok(_("at {tag}").format(tag=place), wanted, _("found {commit}, nothing changed").format(commit=found.head))


def _needs(steps: tuple[str, ...]) -> tuple[str, ...]:
    return ("network",) if any(" clone " in step or " fetch " in step for step in steps) else ()


def _wrong(source: Source, found: Checkout) -> list[str]:
    """The summary, and after it the evidence; empty if all is well."""
    if found.state == "absent":
        return [_("It has not been cloned.")]
    if found.state == "foreign":
        return [_("The folder is there, but is not a git checkout.")]
    if found.state == "partial":
        return [_("The clone was interrupted or is damaged."), found.error]
    lines = []
    if found.changed:
        more = len(found.changed) - SHOWN
        names = ", ".join(found.changed[:SHOWN]) + (_(" and {more} more").format(more=more) if more > 0 else "")
        lines += [_("Tracked files were changed."), _("changed: {names}").format(names=names)]
    if found.head != source.commit:
        lines += [_("It is at another commit."), _("found {commit}").format(commit=found.head)]
    if found.tag_commit and found.tag_commit != source.commit:
        lines += [_("Its tag was moved."), _("{tag} is {commit}").format(tag=source.tag, commit=found.tag_commit)]
    return lines


def _must_clone(found: Checkout) -> bool:
    return found.state != "ready" or bool(found.changed)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.ucllm-part")


def _steps(source: Source, found: Checkout, aside: str = "", origin: str = "") -> tuple[str, tuple[str, ...]]:
    """What helps, in a sentence and in commands; ``aside`` is where a folder in the way goes.

    ``origin`` is what is cloned instead of the profile's address.
    """
    path = Path(found.path)
    at = ("git", "-C", found.path)
    if _must_clone(found):
        part = str(_part(path))
        argvs = [
            ("git", "clone", "--no-checkout", origin or source.url, part),
            *([("git", "-C", part, "remote", "set-url", "origin", source.url)] if origin else []),
            ("git", "-C", part, "checkout", "--detach", source.commit),
            *([] if found.state == "absent" else [("mv", found.path, aside or f"{found.path}.old")]),
            ("mv", part, found.path),
        ]
        text = _("Clone it at its commit (submodules stay empty; nothing here needs them).")
        if found.state != "absent":
            text = _("Keep the folder aside, whole, and clone it anew at its commit (submodules stay empty).")
        return text, tuple(shlex.join(argv) for argv in argvs)
    argvs = []
    if found.head != source.commit:
        heads = "+refs/heads/*:refs/remotes/ucllm/*"
        argvs += [
            (*at, "fetch", "--no-tags", origin or source.url, heads),
            (*at, "checkout", "--detach", source.commit),
        ]
    if found.tag_commit not in ("", source.commit):
        argvs.append((*at, "tag", "-f", source.tag, source.commit))
    text = _("Check the pinned commit out; a tag that was moved is put back here.")
    return text, tuple(shlex.join(argv) for argv in argvs)


def _plan(requirement_id: str, key: str, profile: Profile, facts: Facts, workspace: Workspace) -> list[Action]:
    """Clone beside the place and rename, or check the commit out where nothing of the user's is in the way."""
    source, found = profile.sources.get(key), facts.sources.checkouts.get(key)
    if source is None or found is None or (found.state == "ready" and found.error) or not _wrong(source, found):
        return []
    path = workspace.root / source.folder
    log = workspace.state / "logs" / f"{requirement_id}.txt"
    origin = mirror.git_origin(workspace, source) if workspace.mirror else ""
    steps = _steps(source, found, f"{workspace.backups}/", origin)[1]
    if not _must_clone(found):
        return [Action(_("Check out the pinned commit"), steps, _checkout(source, path, workspace, log))]

    def clone(doing: Doing) -> None:
        part = _part(path)
        if part.exists():  # of a clone that was killed
            doing.move_aside(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        origin = mirror.git_source(workspace, source)
        _run(source, part, log, "clone", "--no-checkout", origin, str(part))
        _require(source, part)
        if origin != source.url:
            _run(source, part, log, "-C", str(part), "remote", "set-url", "origin", source.url)
        _run(source, part, log, "-C", str(part), "checkout", "--detach", source.commit)
        _verify(source, part, log)
        # Only now that the new one is whole does the old one give way.
        if found.state != "absent":
            doing.say(_("the old folder is kept in {path}").format(path=doing.move_aside(path)))
        part.rename(path)

    text = _("Clone {folder} at {commit}").format(folder=source.folder, commit=source.commit[:12])
    if found.state != "absent":
        text = _("Clone {folder} at {commit}, and move the old folder aside").format(
            folder=source.folder, commit=source.commit[:12]
        )
    return [Action(text, steps, clone)]


def _checkout(source: Source, path: Path, workspace: Workspace, log: Path) -> Callable[[Doing], None]:
    def act(doing: Doing) -> None:
        at = ("-C", str(path))
        now = reader.read(path, source)
        if now.head != source.commit:
            # From the profile's address or the mirror: the checkout's `origin` may be a fork of the user's.
            for wanted in ("+refs/heads/*:refs/remotes/ucllm/*", f"refs/tags/{source.tag}"):
                if not _has(source, path):
                    origin = mirror.git_source(workspace, source)
                    _run(source, path, log, *at, "fetch", "--no-tags", origin, wanted)
            _require(source, path)
            _run(source, path, log, *at, "checkout", "--detach", source.commit)
        if now.tag_commit not in ("", source.commit):
            _run(source, path, log, "-c", "tag.gpgSign=false", *at, "tag", "-f", source.tag, source.commit)
            # The journal has no entry for a ref: from this line a person can put it back.
            doing.say(_("the tag {tag} was {commit} here").format(tag=source.tag, commit=now.tag_commit))
        _verify(source, path, log)

    return act


def _has(source: Source, path: Path) -> bool:
    """Whether the commit is in the checkout already."""
    argv = reader.git("-C", str(path), "cat-file", "-e", f"{source.commit}^{{commit}}")
    return host.capture(argv, timeout_s=reader.TIMEOUT_S, env=reader.environment(path)).code == 0


def _require(source: Source, path: Path) -> None:
    """Raise :class:`UcllmError` unless the commit is there. Where it is gone a tag of its name is no substitute."""
    if not _has(source, path):
        what = _("{url} has no commit {commit}.").format(url=host.without_logins(source.url), commit=source.commit)
        raise UcllmError("source.no-commit", what, hint=_("Look at the profile's `[sources]`."))


def _run(source: Source, path: Path, log: Path, *args: str) -> None:
    try:
        host.run_logged(reader.git(*args), log=log, env=reader.environment(path))
    except UcllmError as error:
        raise UcllmError(
            "source.git-failed",
            _("git could not fetch or check out {folder}.").format(folder=source.folder),
            error.problems[0].why,
            _("Check the network or the proxy settings, then run the same command again. The log is {log}.").format(
                log=log
            ),
        ) from error


def _verify(source: Source, path: Path, log: Path) -> None:
    found = reader.read(path, source)
    if found.state != "ready" or found.head != source.commit or found.changed or found.error:
        raise UcllmError(
            "source.not-as-pinned",
            _("The checkout in {path} is not what the profile pins.").format(path=path),
            found.error or ", ".join(found.changed[:SHOWN]) or found.head,
            _("Read {log}.").format(log=log),
        )
