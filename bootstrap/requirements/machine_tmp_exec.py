"""``machine.tmp-exec``: programs and libraries in the temporary folder may be run."""

from __future__ import annotations

import shlex
from pathlib import Path

from bootstrap.facts import Disk, Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.workspace import Workspace
from pipeline.i18n import N_, _


def check(_profile: Profile, facts: Facts) -> Finding:
    """``TMPDIR`` is there, can be written to, and is not mounted ``noexec``."""
    lost = no_folder(facts)
    if lost is not None:
        return lost
    disk = facts.machine.disks.get("tmp", Disk("tmp"))
    source = "TMPDIR" if facts.machine.variables.get("TMPDIR") else _("TMPDIR is not set")
    looked = _("{path} ({source}): writable {writable}, noexec {noexec}").format(
        path=disk.path, source=source, writable=_yes(disk.writable), noexec=_yes(disk.noexec)
    )
    reason = facts.machine.errors.get(f"disk {disk.path}", "")
    seen = (looked, reason) if reason else (looked,)
    remedy = Remedy(_("Use a temporary folder elsewhere."), use_another(facts), needs=("shell",))
    if disk.writable is False:
        return fail(_("The temporary folder {path} cannot be used.").format(path=disk.path), seen, remedy)
    if disk.noexec:
        summary = _("No program can be run from the temporary folder {path}: it is mounted noexec.")
        return fail(summary.format(path=disk.path), seen, remedy)
    if disk.writable is None or disk.noexec is None:
        return unknown(_("The temporary folder {path} could not be looked at.").format(path=disk.path), seen)
    return ok(_("programs can be run from {path}").format(path=disk.path), *seen)


def no_folder(facts: Facts) -> Finding | None:
    """The finding if the temporary folder does not exist or is no folder; ``None`` if it is one."""
    disk = facts.machine.disks.get("tmp", Disk("tmp"))
    if not disk.absent and not disk.obstacle:
        return None
    path = shlex.quote(disk.path)
    named = bool(facts.machine.variables.get("TMPDIR"))
    seen = [f"TMPDIR={path}" if named else _("TMPDIR is not set")]
    seen += [text for text in (facts.machine.errors.get(f"disk {disk.path}"),) if text]
    if disk.obstacle:
        summary = _("{path} cannot be used: {file} is not a folder.").format(path=disk.path, file=disk.obstacle)
        return fail(summary, seen, Remedy(_("Use a temporary folder elsewhere."), use_another(facts), needs=("shell",)))
    text = _("Make it with `mkdir -p {path}`, or use a temporary folder elsewhere.").format(path=path)
    summary = _("The temporary folder {path} does not exist.")
    if named:
        summary = _("TMPDIR names a folder that does not exist: {path}.")
    return fail(summary.format(path=disk.path), seen, Remedy(text, use_another(facts), needs=("shell",)))


def use_another(facts: Facts) -> tuple[str, ...]:
    """The commands that make the temporary folder one in the workspace; none if that is no better."""
    workspace = facts.machine.disks.get("workspace")
    if workspace is not None and (workspace.noexec or workspace.writable is False):
        return ()
    folder = shlex.quote(str(Workspace(Path(facts.workspace)).state / "tmp"))
    return (f"mkdir -p {folder}", f"export TMPDIR={folder}")


def _yes(value: bool | None) -> str:
    return "?" if value is None else _("yes") if value else _("no")


REQUIREMENT = Requirement(
    "machine.tmp-exec",
    N_("Programs run from the temporary folder"),
    N_("The Miniconda installer, builds of packages and Triton run programs and load libraries from there."),
    "0-0",
    check,
    needs=("machine.disk-tmp",),
)
