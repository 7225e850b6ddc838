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

from bootstrap import profiles
from bootstrap.cli.work import Work
from bootstrap.findings import Finding
from bootstrap.profiles import Profile
from pipeline.config import Config
from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _
from pipeline.launch import Machines, cluster, nodes
from pipeline.launch.cluster import Cluster
from pipeline.runs import StagePlan

#: Engines that are programs of the environment, with the checkout that a profile must bring for them.
PROGRAMS = {"megatron-deepspeed": "source.megatron", "llm-jp-sft": "source.llm-jp-sft"}


def of(values: Mapping[str, Any], work: Work, config: Config) -> Machines:
    """The machines of a launch. Raises :class:`UcllmError` for a cluster that is unknown or a job that is too small."""
    chosen = cluster.load(values.get("cluster") or "local")
    program = {config.pretrain.engine, config.finetune.engine} & PROGRAMS.keys()
    count = values.get("nodes") or (nodes.of_job(os.environ) if program else 0) or chosen.nodes or 1
    hosts = nodes.hosts(chosen, count, os.environ)
    seen = work.facts.gpu.devices
    # A profile without the engine cannot say where it computes: the launch is planned for what it is made for.
    elsewhere = bool(program) and not {PROGRAMS[name] for name in program} & {*work.profile.requirements}
    device = "cuda" if chosen.gpu or values.get("compat") or elsewhere or _has_gpu(work) else "cpu"
    slots = values.get("gpus_per_node") or chosen.gpus_per_node
    if not slots:
        processes = config.parallel.tp * config.parallel.pp
        slots = (len(seen) or 1) if device == "cuda" else -(-processes // len(hosts))
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
        memory=_memory(work, chosen, device, slots),
        gpu=_gpu(work, chosen),
        gpus_here=len(seen) if chosen.scheduler == "none" or nodes.inside(os.environ) else 0,
        compat=values.get("compat") or "",
    )


def _has_gpu(work: Work) -> bool:
    """Whether the profile computes on GPUs, or adopts a machine that shows one."""
    return work.profile.on_gpu or bool(work.facts.gpu.devices)


def _gpu(work: Work, chosen: Cluster) -> str:
    """The GPU's name: the cluster's, else what is here, else the profile's."""
    seen = [item.name for item in work.facts.gpu.devices]
    return chosen.gpu or next(iter(seen), "") or (work.profile.gpu.name if work.profile.gpu else "")


def _memory(work: Work, chosen: Cluster, device: str, slots: int) -> int:
    """Bytes for one process: of the GPU that the cluster declares, is here, or the profile declares; a CPU's share.

    A CPU's is that of the whole machine: what is free changes from one call to the next, and the choice must not.
    """
    if device == "cpu":
        return (work.facts.machine.memory_total or 0) // slots
    seen = [item.memory for item in work.facts.gpu.devices if item.memory]
    declared = chosen.gpu_memory_gb or (work.profile.gpu.memory_gb if work.profile.gpu else 0)
    return round(declared * 1e9) if chosen.gpu_memory_gb or not seen else min(seen)


def _suffix(profile: Profile) -> str:
    """The suffix of compiled modules for the profile's Python, where the environment is not there to be asked."""
    major, minor = (profile.pythons[-1] if profile.pythons else platform.python_version()).split(".")[:2]
    return f".cpython-{major}{minor}-{platform.machine()}-linux-gnu.so"


def resolved(config: Config, where: Machines) -> Config:
    """``config`` as it will run there: the published launches' only stop, and ``micro_batch_size=auto`` chosen."""
    from pipeline.engines.megatron_compat import TRAIN_TOKENS
    from pipeline.estimate import largest_micro_batch

    if where.compat:
        config = dataclasses.replace(
            config, pretrain=dataclasses.replace(config.pretrain, tokens=TRAIN_TOKENS, hours=0.0)
        )
    if config.pretrain.micro_batch_size:
        return config
    size = largest_micro_batch(config, where)
    return dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, micro_batch_size=size))


def problems(stages: Sequence[str], config: Config, where: Machines) -> list[Problem]:
    """What keeps the engines of these stages from running there, all at once."""
    from pipeline.engines import llm_jp_sft, megatron, torch_engine, trl_engine

    found: list[Problem] = []
    embedded = []
    if "pretrain" in stages and config.pretrain.engine in PROGRAMS:
        found += megatron.problems(config, where)
        if config.parallel.zero == 3 and "convert" in stages:
            what = _("After ZeRO 3 no file holds a whole weight, and nothing could be converted.")
            found.append(Problem("config.contradiction", what, hint=_("Use `--set parallel.zero=1`.")))
    elif "pretrain" in stages:
        found += torch_engine.problems(config)
        embedded.append(config.pretrain.engine)
    if "finetune" in stages and config.finetune.engine in PROGRAMS:
        found += llm_jp_sft.problems(config, where)
    elif "finetune" in stages:
        found += trl_engine.problems(config)
        embedded.append(config.finetune.engine)
    if embedded and (where.compat or len(where.hosts) > 1):
        what = _("Engine {name} is one process on this machine: it takes no --compat and no --nodes.")
        hint = _(
            "Leave them out, or use `--engine megatron-deepspeed` (pretrain, all), `--engine llm-jp-sft` (finetune)."
        )
        found.append(Problem("config.contradiction", what.format(name=" + ".join(embedded)), hint=hint))
    return found


def refuse(work: Work, config: Config, where: Machines, plans: Sequence[StagePlan]) -> None:
    """Raise :class:`UcllmError` for what a dry run may show and a start cannot do: all of it at once."""
    launched = [plan for plan in plans if plan.launch]
    found: list[Problem] = []
    for plan in launched:
        engine = str(plan.config[plan.stage]["engine"])
        if PROGRAMS[engine] not in work.profile.requirements:
            others = [name for name in profiles.profile_names() if PROGRAMS[engine] in profiles.load(name).requirements]
            what = _("Profile {profile} has no engine {engine}.").format(profile=work.profile.name, engine=engine)
            hint = _("Make a workspace with `ucllm setup --profile NAME`, one of {names}.")
            found.append(Problem("engine.not-in-profile", what, hint=hint.format(names=", ".join(others))))
    if launched and where.gpus_here and where.slots > where.gpus_here and len(where.hosts) == 1:
        what = _("{slots} processes need a GPU each, and {count} are here.")
        text = what.format(slots=where.slots, count=where.gpus_here)
        hint = _("Use `--gpus-per-node {count}`.").format(count=where.gpus_here)
        found.append(Problem("launch.gpus", text, hint=hint))
    ssh = len(where.hosts) > 1 and where.cluster.launcher == "deepspeed"
    if launched and ssh and config.wandb.mode == "online" and os.environ.get("WANDB_API_KEY"):
        what = _("The key of Weights & Biases is in WANDB_API_KEY, which does not reach the other nodes.")
        hint = _("Run `wandb login`, which keeps it in a file of your home, and unset the variable.")
        found.append(Problem("launch.wandb", what, hint=hint))
    if found:
        raise UcllmError.of(found)


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
    what = _("{count} x {name}").format(count=where.world_size, name=where.gpu or where.device)
    days, seconds = found["days"], round(found["seconds"])
    time = _("{days:,.0f} days").format(days=days) if days >= 3 else str(datetime.timedelta(seconds=seconds))
    text = _("estimate: {tokens:,.1f} million tokens in {time} on {what}, {memory:.1f} GB of memory each")
    line = text.format(tokens=found["tokens"] / 1e6, time=time, what=what, memory=found["memory_bytes"] / 1e9)
    if where.memory and found["memory_bytes"] > where.memory:
        more = _("which have {memory:.1f} GB: lower pretrain.micro_batch_size, or raise parallel.tp, pp or zero")
        line += ", " + more.format(memory=where.memory / 1e9)
    return line
