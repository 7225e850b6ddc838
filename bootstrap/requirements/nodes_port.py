"""``nodes.port``: the master port is free on the first node, and the others reach it there."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import NODES_STEP, Requirement
from bootstrap.requirements._nodes import hosts
from bootstrap.requirements.machine_port import HIGHEST
from pipeline.i18n import N_, _


def check(_profile: Profile, facts: Facts) -> Finding:
    """Whether the first node could listen, and whether each of the others got its word back."""
    job = facts.nodes
    first, *others = job.nodes
    words = {"port": job.port, "host": first.host, "address": job.address}
    looked = _("listened on {host} at port {port}, connected to {address} from the others").format(**words)
    another = job.port + 100 if job.port + 100 <= HIGHEST else 29600
    elsewhere = Remedy(
        _("Take another port with `--master-port {port}`, or wait until that program has ended.").format(port=another)
    )
    if first.network.port_free is None:
        return unknown(_("Whether port {port} is free on {host} could not be tried.").format(**words), (looked,))
    if not first.network.port_free:
        owner = first.network.port_owner or _("a program of another user")
        seen = (looked, _("held by: {owner}").format(owner=owner))
        return fail(_("Port {port} is taken on {host}.").format(**words), seen, elsewhere)
    away = [node for node in others if node.met]
    if away:
        unmet = [f"{node.host}: {node.met}" for node in away]
        text = _(
            "Name the first node as the others know it, and let the firewall pass between the nodes; training uses "
            "further ports that the system chooses, so pass all of them."
        )
        summary = _("{hosts} cannot reach {address} at port {port}.").format(**words, hosts=hosts(away))
        return fail(summary, (looked, *unmet), Remedy(text, needs=("root",)))
    if not others:
        return ok(_("port {port} is free on {host}").format(**words), looked)
    return ok(_("port {port} is free on {host}, and every node reaches it").format(**words), looked)


REQUIREMENT = Requirement(
    "nodes.port",
    N_("Master port of the nodes"),
    N_("All processes meet there; if it is taken or blocked, the launch waits until it gives up after half an hour."),
    NODES_STEP,
    check,
    needs=("nodes.reachable",),
    reads=("nodes",),
)
