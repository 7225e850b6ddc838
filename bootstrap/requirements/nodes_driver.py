"""``nodes.driver``: every node's NVIDIA driver answers, is new enough, and is the same."""

from __future__ import annotations

import dataclasses

from bootstrap.facts import Facts, MachineFacts
from bootstrap.findings import FAIL, SKIPPED, UNKNOWN, Finding, Remedy, fail, ok, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import NODES_STEP, Requirement, machine_driver
from bootstrap.requirements._nodes import hosts, listed, odd, told, unread
from pipeline.i18n import N_, _


def check(profile: Profile, facts: Facts) -> Finding:
    """What ``machine.driver`` says of each node, then whether they are the same."""
    nodes = facts.nodes.nodes
    lost = unread(facts, "gpu")
    if lost:
        return lost
    # A node of a job is no login node: where it has no driver, it has none.
    found = {
        node.host: machine_driver.check(profile, dataclasses.replace(facts, gpu=node.gpu, machine=MachineFacts()))
        for node in nodes
    }
    seen = [f"{host}: {finding.summary}" for host, finding in found.items()]
    for status, say in ((FAIL, fail), (UNKNOWN, unknown)):
        bad = [node for node in nodes if found[node.host].status == status]
        if bad:
            return say(
                _("The NVIDIA driver is not as it must be on {hosts}.").format(hosts=hosts(bad)),
                seen,
                found[bad[0].host].remedy,
            )
    without = [node for node in nodes if found[node.host].status == SKIPPED]
    if len(without) == len(nodes):
        return found[nodes[0].host]
    if without:
        return fail(_("There is no NVIDIA driver on {hosts}.").format(hosts=hosts(without)), seen)
    versions = {node.host: node.gpu.driver for node in nodes}
    if odd(versions):
        text = _("Give all nodes the same driver, or name nodes with the same one.")
        summary = _("{hosts} have another driver than the rest.").format(hosts=listed(odd(versions)))
        return warn(summary, (told(_("driver"), versions),), Remedy(text, needs=("root", "restart")))
    return ok(_("driver {version} on every node").format(version=nodes[0].gpu.driver), *seen)


REQUIREMENT = Requirement(
    "nodes.driver",
    N_("NVIDIA driver of the nodes"),
    N_("A node whose driver is too old for torch's CUDA sees no GPU, and the others wait for it."),
    NODES_STEP,
    check,
    needs=("nodes.reachable",),
    reads=("nodes",),
)
