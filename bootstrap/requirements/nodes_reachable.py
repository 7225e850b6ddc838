"""``nodes.reachable``: every node of the job can be logged in to, and ucllm answers there."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import NODES_STEP, Requirement
from bootstrap.requirements._nodes import hosts
from pipeline.i18n import N_, _


def check(_profile: Profile, facts: Facts) -> Finding:
    """What nobody answers on fails; an answer that is no ucllm's leaves unknown what is true there."""
    job = facts.nodes
    if not job.nodes:
        return unknown(_("No nodes were named."))
    away = [node for node in job.nodes if node.state in ("unreachable", "silent")]
    mute = [node for node in job.nodes if node.state == "mute"]
    seen = [f"{node.host}: {node.error}" for node in (*away, *mute)]
    if away:
        text = _("Try it by hand until it answers without a question, or leave the node out.")
        commands = tuple(job.try_command.replace("HOST", node.host) for node in away[:3])
        return fail(_("No answer from {hosts}.").format(hosts=hosts(away)), seen, Remedy(text, commands))
    if mute:
        text = _("Let {path} be there too: install ucllm on storage that all nodes share, or at the same path on each.")
        summary = _("{hosts} can be reached, but ucllm does not answer there.").format(hosts=hosts(mute))
        return unknown(summary, seen, Remedy(text.format(path=job.program)))
    looked = _("asked over {way}, this machine directly: {hosts}").format(way=job.over, hosts=hosts(job.nodes))
    return ok(_("{count} nodes answered").format(count=len(job.nodes)), looked)


REQUIREMENT = Requirement(
    "nodes.reachable",
    N_("Nodes can be reached"),
    N_("A launch logs in to every node without a question; one that refuses stops all, or leaves the others waiting."),
    NODES_STEP,
    check,
    reads=("nodes",),
)
