"""``machine.open-files``: a process may open as many files as a training needs."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """Compare the soft limit with the profile."""
    return limit(facts, "open_files", profile.machine.open_files, "-n", _("open files"))


def limit(facts: Facts, name: str, need: int, option: str, what: str) -> Finding:
    """The finding for one of the limits of ``ulimit``, which must be ``need`` or more; -1 is no limit."""
    soft, hard = facts.machine.limits.get(name), facts.machine.limits.get(f"hard_{name}")
    looked = _("`ulimit {option}`: {soft}, at most {hard}; needed: {needed}").format(
        option=option, soft=number(soft), hard=number(hard), needed=need
    )
    if soft is None:
        return unknown(_("The limit of {what} could not be read.").format(what=what), (looked,))
    if soft == -1 or soft >= need:
        return ok(_("{what}: {limit}").format(what=what, limit=number(soft)), looked)
    summary = _("{what}: {limit}; {needed} are needed.").format(what=what, limit=soft, needed=need)
    if hard is not None and (hard == -1 or hard >= need):
        text = _("Raise the limit in the shell or job script that starts the training.")
        return fail(summary, (looked,), Remedy(text, (f"ulimit -S {option} {need}",), needs=("shell",)))
    text = _("Have the hard limit raised to {needed} (limits.conf, or the scheduler's or container's setting).")
    return fail(summary, (looked,), Remedy(text.format(needed=need), needs=("root",)))


def number(value: int | None) -> str:
    """A limit as text for people."""
    return "?" if value is None else _("unlimited") if value == -1 else str(value)


REQUIREMENT = Requirement(
    "machine.open-files",
    N_("Limit of open files"),
    N_("Data loaders and many ranks open many files; beyond the limit they end with «Too many open files»."),
    "0-0",
    check,
)
