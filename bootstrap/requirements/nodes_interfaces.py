"""``nodes.interfaces``: on every node there is an interface that NCCL and gloo may use, best one of the same name."""

from __future__ import annotations

import dataclasses

from bootstrap.facts import Facts, NodeFacts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import NODES_STEP, Requirement
from bootstrap.requirements._interfaces import asked_for
from bootstrap.requirements._nodes import hosts, listed
from pipeline.i18n import N_, _

#: Interfaces that lead to no other node: loopback, and those of containers and virtual machines on this one.
INWARD = ("lo", "docker", "br-", "veth", "virbr", "cni", "flannel", "podman", "tap", "tun")


def check(_profile: Profile, facts: Facts) -> Finding:
    """What the variables here ask for must be on every node: a launch hands them on. Without any, names are compared.

    NCCL and gloo can take differently named interfaces, so that no common name is only warned of.
    """
    nodes = facts.nodes.nodes
    seen = [
        f"{node.host}: " + (", ".join(f"{n} ({state})" for n, state in node.network.interfaces.items()) or "?")
        for node in nodes
    ]
    if any(not node.network.interfaces for node in nodes):
        return unknown(_("The network interfaces could not be read."), seen)
    wrong = {
        node.host: [item for item in asked_for(dataclasses.replace(facts, network=node.network)) if item.fails]
        for node in nodes
    }
    bad = [node for node in nodes if wrong[node.host]]
    if bad:
        named = list(dict.fromkeys(item.name for node in bad for item in wrong[node.host]))
        seen += list(dict.fromkeys(f"{item.name}={item.value}" for node in bad for item in wrong[node.host]))
        summary = _("{variables}: what is named is not up on {hosts}.")
        remedy = Remedy(
            _("Unset them, or name what is on every node."), (f"unset {' '.join(named)}",), needs=("shell",)
        )
        return fail(summary.format(variables=", ".join(named), hosts=hosts(bad)), seen, remedy)
    asked = asked_for(facts)
    if asked:
        return ok(_("what {names} name is up on every node").format(names=listed([item.name for item in asked])), *seen)
    if len(nodes) == 1:
        return skipped(_("One node needs no network."), *seen)
    outward = {node.host: _outward(node) for node in nodes}
    alone = [node for node in nodes if not outward[node.host]]
    if alone:
        summary = _("No interface that leads to other nodes is up on {hosts}.").format(hosts=hosts(alone))
        return fail(summary, seen, Remedy(_("Bring one up, or name other nodes."), needs=("root",)))
    common = [name for name in outward[nodes[0].host] if all(name in names for names in outward.values())]
    if not common:
        each = list(dict.fromkeys(names[0] for names in outward.values()))
        text = _("If the processes do not find each other, name one of each node.")
        command = f"export NCCL_SOCKET_IFNAME={','.join(each)}"
        summary = _("No interface has the same name on every node; NCCL chooses on each by itself.")
        return warn(summary, seen, Remedy(text, (command,), needs=("shell",)))
    return ok(_("on every node: {names}").format(names=listed(common)), *seen)


def _outward(node: NodeFacts) -> list[str]:
    return [name for name, state in node.network.interfaces.items() if state == "up" and not name.startswith(INWARD)]


REQUIREMENT = Requirement(
    "nodes.interfaces",
    N_("Network interfaces of the nodes"),
    N_("NCCL and gloo need a way from node to node; an interface that only one node has leaves the others waiting."),
    NODES_STEP,
    check,
    needs=("nodes.reachable",),
    reads=("nodes", "machine"),
)
