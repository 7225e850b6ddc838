"""``machine.interfaces``: the interfaces that NCCL and gloo are told to use are here."""

from __future__ import annotations

from collections.abc import Sequence

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from bootstrap.requirements._interfaces import asked_for
from pipeline.i18n import N_, _


def check(_profile: Profile, facts: Facts) -> Finding:
    """Each of the variables that is set must leave at least one interface; names that must be exact must be here."""
    interfaces = facts.network.interfaces
    here = _("interfaces here: {names}").format(names=_list([f"{n} ({state})" for n, state in interfaces.items()]))
    asked = asked_for(facts)
    if not asked:
        return ok(_("NCCL and gloo choose the interfaces themselves"), here)
    set_ = [f"{item.name}={item.value}" for item in asked]
    if not interfaces:
        return unknown(_("The network interfaces could not be read."), (here, *set_))
    if facts.network.adapters is None and any(item.name == "NCCL_IB_HCA" for item in asked):
        return unknown(_("The RDMA adapters could not be read."), (here, *set_))
    seen = [here, _("RDMA adapters here: {names}").format(names=_list(facts.network.adapters or ())), *set_]
    for item in asked:
        if item.absent:
            seen.append(_("{variable}: not here: {names}").format(variable=item.name, names=_list(item.absent)))
    wrong = [item.name for item in asked if item.fails]
    doubtful = [item.name for item in asked if item.absent and item.pattern.exact]
    text = _("Unset them, or name what is here.")
    remedy = Remedy(text, (f"unset {' '.join(wrong or doubtful)}",), needs=("shell",))
    if wrong:
        summary = _("{variables}: what is named is not here, or not up.").format(variables=_list(wrong))
        return fail(summary, seen, remedy)
    if doubtful:
        return warn(
            _("{variables}: some of what is named is not here.").format(variables=_list(doubtful)), seen, remedy
        )
    return ok(_("what {names} name is here").format(names=_list([item.name for item in asked])), *seen)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or _("none")


REQUIREMENT = Requirement(
    "machine.interfaces",
    N_("Network interfaces of NCCL and gloo"),
    N_("Settings copied from another cluster name interfaces that are not here: the ranks never meet, or only slowly."),
    "0-0",
    check,
    reads=("machine", "network"),
)
