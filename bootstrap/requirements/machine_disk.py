"""``machine.disk``: the workspace can be written to and has room for the environment, data and checkpoints."""

from __future__ import annotations

import shlex

from bootstrap.facts import Disk, Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: Profiles count in 10^9 bytes.
GB = 1e9
#: What must still be free of the need once the environment, most of it, is installed: room for a training's outputs.
LEFT_AFTER = 0.25


def gigabytes(size: float | None) -> str:
    """Bytes as text for people."""
    return "?" if size is None else f"{size / GB:.1f} GB"


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare what is free with what the profile will write there."""
    text = _("Make room, or choose another workspace with `--workspace DIR`.")
    return room(facts, "workspace", still_needed(profile.machine.disk_gb, facts), Remedy(text))


def still_needed(need_gb: float, facts: Facts) -> float:
    """Bytes that must be free: all of the need before torch, the largest package, is installed, then a part."""
    return need_gb * GB * (LEFT_AFTER if "torch" in facts.env.dists else 1)


def room(facts: Facts, name: str, need: float, remedy: Remedy) -> Finding:
    """The finding for one of the disks, which must be writable and have ``need`` bytes free."""
    disk = facts.machine.disks.get(name, Disk(name))
    mine = name == "workspace"
    reason = facts.machine.errors.get(f"disk {disk.path}", "")
    if disk.obstacle:
        text = _("Move it away, or choose another folder.")
        other = _("Move it away, or choose another workspace with `--workspace DIR`.")
        summary = _("{path} cannot be used: {file} is not a folder.").format(path=disk.path, file=disk.obstacle)
        return fail(summary, (_("looked at {path}").format(path=disk.path),), Remedy(other if mine else text))
    if disk.absent:
        make = Remedy(_("Make the folder."), (shlex.join(("mkdir", "-p", disk.path)),))
        return fail(_("{path} does not exist.").format(path=disk.path), (reason or disk.path,), make)
    looked = _("{path} ({kind}): {free} free of {total}; needed: {needed}").format(
        path=disk.path,
        kind=disk.kind or _("file system not known"),
        free=gigabytes(disk.free),
        total=gigabytes(disk.total),
        needed=gigabytes(need),
    )
    seen = (looked, reason) if reason else (looked,)
    if disk.writable is False:
        text = _("Make it writable for you, or choose another folder.")
        other = _("Make it writable for you, or choose another workspace with `--workspace DIR`.")
        more = Remedy(other if mine else text, (), needs=remedy.needs)
        return fail(_("{path} cannot be written to.").format(path=disk.path), seen, more)
    if disk.free is None:
        return unknown(_("The free space of {path} could not be read.").format(path=disk.path), seen)
    if disk.free < need:
        summary = _("{free} free in {path}; {needed} are needed.")
        return fail(summary.format(free=gigabytes(disk.free), path=disk.path, needed=gigabytes(need)), seen, remedy)
    if disk.inodes_free == 0:
        return fail(_("No more files can be made in {path}: no inodes are left.").format(path=disk.path), seen, remedy)
    if disk.writable is None:
        return unknown(_("Whether {path} can be written to could not be told.").format(path=disk.path), seen)
    return ok(_("{free} free in {path}").format(free=gigabytes(disk.free), path=disk.path), *seen)


REQUIREMENT = Requirement(
    "machine.disk",
    N_("Room in the workspace"),
    N_("A full disk stops an installation or a checkpoint in the middle and leaves half a file."),
    "0-0",
    check,
    reads=("machine", "env"),
)
