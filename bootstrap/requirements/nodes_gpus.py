"""``nodes.gpus``: every node has as many free GPUs as processes are meant for it."""

from __future__ import annotations

from bootstrap.facts import Facts, Gpu, NodeFacts
from bootstrap.findings import Finding, Remedy, fail, ok, skipped, unknown, warn
from bootstrap.profiles import Profile
from bootstrap.requirements import NODES_STEP, Requirement
from bootstrap.requirements._gpu import gpu_wanted
from bootstrap.requirements._nodes import hosts, told, unread
from pipeline.i18n import N_, _

#: Memory that may be in use on a GPU nobody computes on, bytes: NVML counts what the driver reserves (0.5 GB on an H100
#: with driver 580.159.04, measured). What holds more is a program, also where it may not be seen.
IDLE = 2 * 10**9


def check(profile: Profile, facts: Facts) -> Finding:
    """The first GPUs, one for each slot, must be there and must be nobody's: launchers number them from 0."""
    nodes = facts.nodes.nodes
    lost = unread(facts, "gpu")
    if lost:
        return lost
    if not gpu_wanted(profile) and not any(node.gpu.devices for node in nodes):
        return skipped(_("No node has a GPU, and this profile names none."))
    few = [node for node in nodes if len(node.gpu.devices) < node.slots]
    if few:
        seen = [
            _("{host}: {found} GPUs, slots={slots}").format(
                host=node.host, found=len(node.gpu.devices), slots=node.slots
            )
            for node in few
        ]
        text = _("Ask the scheduler for more GPUs a node, or write fewer slots.")
        return fail(_("Fewer GPUs than slots on {hosts}.").format(hosts=hosts(few)), seen, Remedy(text))
    taken = {node.host: list(_taken(node)) for node in nodes}
    busy = [node for node in nodes if taken[node.host]]
    if busy:
        seen = [f"{node.host}: {line}" for node in busy for line in taken[node.host]]
        text = _("End those programs, take other nodes, or ask the scheduler for whole ones (Slurm: --exclusive).")
        return fail(_("GPUs are in use on {hosts}.").format(hosts=hosts(busy)), seen, Remedy(text))
    dark = [node for node in nodes if any(_memory_used(gpu) is None for gpu in node.gpu.devices[: node.slots])]
    if dark:
        summary = _("Whether the GPUs of {hosts} are free could not be read.").format(hosts=hosts(dark))
        return unknown(summary, [f"{node.host}: {node.gpu.problem or node.gpu.source}" for node in dark])
    models = {node.host: ", ".join(sorted({gpu.name for gpu in node.gpu.devices[: node.slots]})) for node in nodes}
    if len(set(models.values())) > 1:
        text = _("Name nodes of one kind: the slowest sets the pace, the smallest the memory.")
        return warn(_("The nodes have different GPUs."), (told("GPU", models),), Remedy(text))
    count = sum(node.slots for node in nodes)
    seen = [f"{node.host}: {node.slots} x {models[node.host]}" for node in nodes]
    return ok(_("{count} free GPUs on {nodes} nodes").format(count=count, nodes=len(nodes)), *seen)


def _taken(node: NodeFacts) -> list[str]:
    """What lies on the GPUs that the job would take, a line a GPU."""
    lines = []
    for number, gpu in enumerate(node.gpu.devices[: node.slots]):
        used = _memory_used(gpu)
        if gpu.processes:
            lines.append(_("GPU {number}: process {names}").format(number=number, names=", ".join(gpu.processes)))
        elif used is not None and used > IDLE:
            text = _("GPU {number}: {gb} GB in use, by a program that cannot be seen from here")
            lines.append(text.format(number=number, gb=round(used / 10**9, 1)))
    return lines


def _memory_used(gpu: Gpu) -> int | None:
    return None if gpu.memory is None or gpu.memory_free is None else gpu.memory - gpu.memory_free


REQUIREMENT = Requirement(
    "nodes.gpus",
    N_("Free GPUs on the nodes"),
    N_("Each process takes one GPU; one that another program holds runs out of memory, and all the others with it."),
    NODES_STEP,
    check,
    needs=("nodes.driver",),
    reads=("nodes",),
)
