"""Where a stage would run: cluster, nodes and GPUs, from options, the scheduler's variables and the facts."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bootstrap.cli.work import Work
from bootstrap.findings import Finding
from bootstrap.profiles import Profile
from pipeline.config import Config
from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _
from pipeline.launch import Machines, cluster, nodes
from pipeline.runs import StagePlan

#: Bytes in the "GB" that makers of GPUs write.
_GIB = 1 << 30


def of(values: Mapping[str, Any], work: Work, config: Config) -> Machines:
    """The machines of a launch. Raises :class:`UcllmError` for a cluster that is unknown or a job that is too small."""
    chosen = cluster.load(values.get("cluster") or "local")
    hosts = nodes.hosts(chosen, values.get("nodes") or chosen.nodes or 1, os.environ)
    device = "cuda" if chosen.gpu or values.get("compat") or _has_gpu(work) else "cpu"
    slots = values.get("gpus_per_node") or chosen.gpus_per_node
    if not slots:
        seen = len(work.facts.gpu.devices)
        processes = config.parallel.tp * config.parallel.pp
        slots = (seen or 1) if device == "cuda" else -(-processes // len(hosts))
    job = nodes.job_id(os.environ)
    return Machines(
        cluster=chosen,
        hosts=hosts,
        slots=slots,
        device=device,
        port=nodes.master_port(job),
        workspace=work.workspace.root,
        python=work.workspace.python,
        extension_suffix=work.facts.env.extension_suffix or _suffix(work.profile),
        job_id=job,
        memory=_memory(work, chosen.gpu_memory_gb, device, slots),
        compat=values.get("compat") or "",
    )


def _has_gpu(work: Work) -> bool:
    """Whether the profile computes on GPUs: it declares CUDA, or adopts a machine that shows one."""
    profile = work.profile
    declared = profile.cuda is not None or bool(profile.torch_build and profile.torch_build.cuda)
    return declared or bool(work.facts.gpu.devices)


def _memory(work: Work, of_cluster: float, device: str, slots: int) -> int:
    """Bytes for one process: of the smallest GPU seen, else the cluster's or the profile's; on a CPU its share."""
    if device == "cpu":
        return (work.facts.machine.memory_available or 0) // slots
    seen = [item.memory for item in work.facts.gpu.devices if item.memory]
    declared = of_cluster or (work.profile.gpu.memory_gb if work.profile.gpu else 0)
    return round(declared * _GIB) if of_cluster or not seen else min(seen)


def _suffix(profile: Profile) -> str:
    """The suffix of compiled modules for the profile's Python, where the environment is not there to be asked."""
    major, minor = (profile.pythons[-1] if profile.pythons else platform.python_version()).split(".")[:2]
    return f".cpython-{major}{minor}-{platform.machine()}-linux-gnu.so"


def resolved(config: Config, where: Machines) -> Config:
    """``config`` with ``pretrain.micro_batch_size=auto`` chosen for these machines."""
    if config.pretrain.micro_batch_size:
        return config
    from pipeline.estimate import largest_micro_batch

    size = largest_micro_batch(config, where)
    return dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, micro_batch_size=size))


def problems(stages: Sequence[str], config: Config, where: Machines) -> list[Problem]:
    """What keeps the engines of these stages from running there, all at once."""
    from pipeline.engines import llm_jp_sft, megatron, torch_engine, trl_engine

    found: list[Problem] = []
    if "pretrain" in stages and config.pretrain.engine == "megatron-deepspeed":
        found += megatron.problems(config, where)
    elif "pretrain" in stages:
        found += torch_engine.problems(config)
    if "finetune" in stages and config.finetune.engine == "llm-jp-sft":
        found += llm_jp_sft.problems(config, where)
    elif "finetune" in stages:
        found += trl_engine.problems(config)
    return found


def findings(work: Work, where: Machines, plans: Sequence[StagePlan]) -> list[Finding]:
    """What the nodes of a launch say of each other, before anything starts on them; nothing for one node.

    Raises :class:`UcllmError` when the nodes are still to be given by a scheduler.
    """
    launched = next((plan.launch for plan in plans if plan.launch), None)
    if launched is None or len(where.hosts) == 1:
        return []
    from bootstrap import nodes as comparing

    if where.cluster.scheduler != "none" and not nodes.inside(os.environ):
        raise UcllmError(
            "launch.no-job",
            _("This is not a job of cluster {name}: there are no nodes to start on.").format(name=where.cluster.name),
            hint=_("Add `--submit`, or ask the scheduler for nodes and run the same command there."),
        )
    over = "ssh" if where.cluster.launcher == "deepspeed" else "srun"
    hosts = [(host, where.slots) for host in where.hosts]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "ssh_config")
        config.write_text(launched.files.get("ssh_config", ""), encoding="utf-8")
        given = config if "ssh_config" in launched.files else None
        return comparing.findings(hosts, where.port, work.workspace, work.profile, over=over, ssh_config=given)


def costs(config: Config, where: Machines) -> str:
    """One line: how long the pretraining takes there and what it needs, by estimate."""
    from pipeline.estimate import estimate

    found = estimate(config, where.slots, where)
    what = _("{count} x {name}").format(count=where.world_size, name=where.cluster.gpu or where.device)
    days, seconds = found["days"], round(found["seconds"])
    time = _("{days:.0f} days").format(days=days) if days >= 3 else str(datetime.timedelta(seconds=seconds))
    text = _("estimate: {tokens:,.1f} million tokens in {time} on {what}, {memory:.1f} GB of memory each")
    return text.format(tokens=found["tokens"] / 1e6, time=time, what=what, memory=found["memory_bytes"] / 1e9)
