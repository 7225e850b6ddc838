"""``nodes.workspace``: the workspace's path is the same shared folder on every node."""

from __future__ import annotations

from bootstrap.facts import Facts
from bootstrap.findings import Finding, Remedy, fail, ok, unknown
from bootstrap.profiles import Profile
from bootstrap.requirements import NODES_STEP, Requirement
from bootstrap.requirements._nodes import hosts, listed
from pipeline.i18n import N_, _


def check(_profile: Profile, facts: Facts) -> Finding:
    """A file written here a moment ago must be seen there, in a folder that can be written to."""
    job, path = facts.nodes, facts.workspace
    seen = [
        f"{node.host}: {node.disk.kind or '?'}, " + (_("seen") if node.shared else _("not seen")) for node in job.nodes
    ]
    seen.insert(0, _("looked for a file just written into {path}").format(path=path))
    remedy = Remedy(_("Choose a workspace on storage that all nodes mount at the same path: `--workspace DIR`."))
    absent = [node for node in job.nodes if node.disk.absent or node.disk.obstacle]
    if absent:
        summary = _("There is no folder {path} on {hosts}.")
        return fail(summary.format(path=path, hosts=hosts(absent)), seen, remedy)
    if job.marker_error:
        summary = _("Whether the nodes share {path} could not be tried: it cannot be written here.").format(path=path)
        return unknown(summary, (job.marker_error,))
    other = [node for node in job.nodes if not node.shared]
    if other:
        summary = _("{path} is another folder on {hosts}: it is not shared.")
        return fail(summary.format(path=path, hosts=hosts(other)), seen, remedy)
    closed = [node for node in job.nodes if not node.disk.writable]
    if closed:
        summary = _("{path} cannot be written on {hosts}.").format(path=path, hosts=hosts(closed))
        return fail(summary, seen, Remedy(_("Mount it there for writing, by the same user.")))
    kinds = listed(sorted({node.disk.kind or "?" for node in job.nodes}))
    return ok(_("every node sees the same {path} ({kinds})").format(path=path, kinds=kinds), *seen)


REQUIREMENT = Requirement(
    "nodes.workspace",
    N_("Nodes share the workspace"),
    N_("Environment, data and checkpoints lie there; each rank reads and writes them at the same path."),
    NODES_STEP,
    check,
    needs=("nodes.reachable",),
    reads=("nodes",),
)
