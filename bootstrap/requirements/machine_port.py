"""``machine.port``: the port at which the ranks of a training meet is free."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.facts.network import port_number
from bootstrap.findings import Finding, Remedy, fail, ok, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import Requirement
from pipeline.i18n import N_, _

#: Ports below belong to root; those from 32768 on are given to outgoing connections by Linux.
LOWEST, HIGHEST = 1024, 32767


def check(_profile: Profile, facts: Facts) -> Finding:
    """Whether a server could take the port when the facts were collected."""
    network = facts.network
    given = facts.machine.variables.get("MASTER_PORT", "")
    if given and port_number(given) is None:
        seen = (f"MASTER_PORT={given}", _("needed: a number from 1 to 65535"))
        text = _("Unset it, or set it to a free port.")
        return fail(
            _("MASTER_PORT is no port: {given}").format(given=given),
            seen,
            Remedy(text, ("unset MASTER_PORT",), needs=("shell",)),
        )
    source = "MASTER_PORT" if given else _("the profile's")
    looked = _("tried to bind port {port} ({source})").format(port=network.port, source=source)
    if network.port_free is None:
        return unknown(_("Whether port {port} is free could not be tried.").format(port=network.port), (looked,))
    if network.port_free:
        return ok(_("port {port} is free").format(port=network.port), looked)
    another = network.port + 100 if network.port + 100 <= HIGHEST else 29600
    text = _("Let the training meet at another port, or wait until that program has ended.")
    remedy = Remedy(text, (f"export MASTER_PORT={another}",), needs=("shell",))
    if network.port < LOWEST and not network.port_owner:
        summary = _("Port {port} cannot be taken; ports below 1024 belong to root.").format(port=network.port)
        return warn(summary, (looked,), remedy)
    owner = network.port_owner or _("a program of another user")
    summary = _("Port {port} is taken by process {owner}.") if network.port_owner else _("Port {port} is taken.")
    seen = (looked, _("held by: {owner}").format(owner=owner))
    return warn(summary.format(port=network.port, owner=owner), seen, remedy)


REQUIREMENT = Requirement(
    "machine.port",
    N_("Master port"),
    N_("All ranks meet there; if another training holds it, this one ends with «Address already in use» or waits."),
    "0-0",
    check,
    reads=("machine", "network"),
)
