"""``nodes.versions``: every node runs the same Python, packages and checkouts."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok
from bootstrap.profiles import Profile
from bootstrap.requirements import NODES_STEP, Requirement
from bootstrap.requirements._nodes import MOST, hosts, listed, odd, told, unread
from pipeline.i18n import N_, _

#: What people look for first; the rest comes by the alphabet.
FIRST = ("ucllm", "Python", "torch", "CUDA", "deepspeed", "transformers", "accelerate", "apex", "flash-attn")


def check(_profile: Profile, facts: Facts) -> Finding:
    """Compare everything with what most nodes have."""
    nodes = facts.nodes.nodes
    lost = unread(facts, "env", "sources")
    if lost:
        return lost
    setup = _("Let all nodes use one shared workspace, or make it the same there: `ucllm setup --workspace {path}`.")
    remedy = Remedy(setup.format(path=facts.workspace))
    broken = [node for node in nodes if node.env != "ready"]
    if broken:
        seen = [f"{node.host}: {node.env_error or node.env}" for node in broken]
        return fail(_("There is no working environment on {hosts}.").format(hosts=hosts(broken)), seen, remedy)
    names = sorted(
        {name for node in nodes for name in node.versions},
        key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name),
    )
    values = {name: {node.host: node.versions.get(name, "") for node in nodes} for name in names}
    different = [name for name in names if odd(values[name])]
    if different:
        who = [node.host for node in nodes if any(node.host in odd(values[name]) for name in different)]
        seen = [told(name, values[name]) for name in different[:MOST]]
        if len(different) > MOST:
            seen.append(_("and {count} more").format(count=len(different) - MOST))
        summary = _("{hosts} differ from the rest: {names}.")
        return fail(summary.format(hosts=listed(who), names=listed(different)), seen, remedy)
    main = [f"{name} {nodes[0].versions[name]}" for name in FIRST[1:] if nodes[0].versions.get(name)]
    compared = _("compared on {count} nodes: {versions}").format(count=len(nodes), versions=len(names))
    return ok(", ".join(main), compared)


REQUIREMENT = Requirement(
    "nodes.versions",
    N_("Nodes run the same versions"),
    N_("Ranks of different versions hang at the first exchange, or train on with different numbers."),
    NODES_STEP,
    check,
    needs=("nodes.reachable",),
    reads=("nodes",),
)
