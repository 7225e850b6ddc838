"""``machine.memlock``: memory may be locked where InfiniBand is used, which transfers only from locked memory."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, ok, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: NCCL registers some megabytes for each connection; a finite limit below this runs out on a few nodes. Bytes.
ENOUGH = 2**30


def check(_profile: Profile, facts: Facts) -> Finding:
    """The limit only matters where NCCL will use InfiniBand."""
    limit = facts.machine.limits.get("memlock")
    shown = "?" if limit is None else _("unlimited") if limit == -1 else f"{limit // 1024} KB"
    looked = _("`ulimit -l`: {limit}").format(limit=shown)
    why = infiniband(facts)
    if not why:
        return ok(_("no InfiniBand, so no memory needs to be locked"), looked, _("no interface ib*, no NCCL_IB_HCA"))
    if limit is None:
        return unknown(_("The limit of locked memory could not be read."), (looked, why))
    if limit == -1 or limit >= ENOUGH:
        return ok(_("locked memory: {limit}").format(limit=shown), looked, why)
    hard = facts.machine.limits.get("hard_memlock")
    commands = ("ulimit -S -l unlimited",) if hard == -1 else ()
    text = _("Raise the limit in the shell or job script that starts the training.")
    if not commands:
        text = _("Have the limit raised: `memlock unlimited` in limits.conf; Docker: `--ulimit memlock=-1`.")
    return warn(
        _("Only {limit} of memory may be locked, and InfiniBand needs more.").format(limit=shown),
        (looked, why),
        Remedy(text, commands, needs=("shell",) if commands else ("root",)),
    )


def infiniband(facts: Facts) -> str:
    """Why NCCL will use InfiniBand here; empty if it will not. ``NCCL_IB_DISABLE=1`` turns it off."""
    variables = facts.machine.variables
    if variables.get("NCCL_IB_DISABLE", "0") not in ("", "0"):
        return ""
    names = [name for name in facts.network.interfaces if name.startswith("ib")]
    if names:
        return _("InfiniBand interfaces: {names}").format(names=", ".join(names))
    for name in ("NCCL_IB_HCA", "NCCL_IB_DISABLE"):
        if variables.get(name):
            return f"{name}={variables[name]}"
    return ""


REQUIREMENT = Requirement(
    "machine.memlock",
    N_("Limit of locked memory"),
    N_("InfiniBand transfers only from locked memory; beyond the limit NCCL ends with «Cannot allocate memory»."),
    "0-0",
    check,
    reads=("machine", "network"),
)
