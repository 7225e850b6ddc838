"""Clusters as data: ``clusters/*.toml``, and a user's own file of the same form.

A file says how nodes are asked for and reached; what is trained on them is the recipe's. Each packaged value names its
source beside it, and what no source says is left out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, UcllmError, did_you_mean
from pipeline.i18n import N_, _
from pipeline.recipe import load_toml

CLUSTERS_DIR = Path(__file__).parent / "clusters"
SCHEDULERS = ("none", "slurm", "sge")
#: ``deepspeed``: its launcher reaches the nodes with pdsh over ssh. ``deepspeed-no-ssh`` and ``torchrun``: srun starts
#: each node's own launcher.
LAUNCHERS = ("deepspeed", "deepspeed-no-ssh", "torchrun")
#: The names that the published scripts use, ``sakrua`` as misspelt there; v0.3's ``gcp`` is v0.71's ``gcp_play``.
_ALIASES = {"gcp": "gcp-play", "sakrua": "sakura"}
#: ``gcp_node-2_gpu``, ``abci_node-2_gpu-16``: the published names of a cluster with a number of machines.
_SIZES = re.compile(r"[_-]node-\d+([_-]gpu(-\d+)?)?$")
_SECRET = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|KEY)(?:$|_)", re.IGNORECASE)
_TIME = re.compile(r"(\d+-)?\d{1,3}:[0-5]\d:[0-5]\d")


def is_secret(variable: str) -> bool:
    """Whether the name of an environment variable says that its value must not be written anywhere."""
    return bool(_SECRET.search(variable))


@dataclass(frozen=True)
class Cluster:
    """How nodes are asked for and reached. An empty text or 0 means that nothing is said."""

    name: str = ""
    description: str = ""
    scheduler: str = "none"
    launcher: str = "deepspeed"
    #: Slurm's partition; for SGE the resource that one node is asked for by (``rt_AF``).
    partition: str = ""
    #: SGE: the resource for part of a node, by its number of GPUs (``rt_AG.small`` for 1).
    partitions: Mapping[str, str] = field(default_factory=dict)
    #: Nodes where ``--nodes`` does not say it.
    nodes: int = 1
    #: GPUs of a node, and the number that is used where ``--gpus-per-node`` does not say it; 0: those that are there.
    gpus_per_node: int = 0
    #: Processors asked for with all GPUs of a node; with fewer GPUs their share, but not less than ``minimum_cpus``.
    cpus_per_node: int = 0
    minimum_cpus: int = 0
    #: ``HH:MM:SS`` for a submitted job; empty: the scheduler's default.
    time_limit: str = ""
    #: What a job loads with ``module load``, after the file that defines ``module``.
    modules: tuple[str, ...] = ()
    modules_from: str = ""
    #: Without a scheduler: the machines, in order; the first one is where ucllm is started.
    hosts: tuple[str, ...] = ()
    ssh_port: int = 22
    #: Empty: the user's own name, or what ``~/.ssh/config`` says.
    ssh_user: str = ""
    #: As ``nvidia-smi`` names it, and its memory in GB of 10^9 bytes; for estimates where no GPU can be seen.
    gpu: str = ""
    gpu_memory_gb: float = 0.0
    #: Set on every node for training (``NCCL_SOCKET_IFNAME``); never secrets.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Further lines of the job script: ``--mem=370G`` for sbatch, ``-l USE_SSH=1`` for qsub.
    submit_options: tuple[str, ...] = ()

    def cpus(self, gpus: int) -> int:
        """Processors to ask for on a node beside ``gpus`` GPUs; 0 where the file says nothing."""
        if not self.cpus_per_node or not self.gpus_per_node or gpus >= self.gpus_per_node:
            return self.cpus_per_node
        share = -(-self.cpus_per_node * gpus // self.gpus_per_node)
        return min(self.cpus_per_node, max(share, self.minimum_cpus))

    def resource(self, nodes: int, gpus: int) -> str:
        """The partition or resource for ``nodes`` nodes with ``gpus`` GPUs each."""
        return self.partitions.get(str(gpus), self.partition) if nodes == 1 else self.partition


def names() -> list[str]:
    """The clusters that come with ucllm."""
    return sorted(path.stem for path in CLUSTERS_DIR.glob("*.toml"))


def load(name_or_path: str) -> Cluster:
    """The cluster of that name, of a published script's name for it, or of a TOML file.

    Raises :class:`UcllmError` for an unknown name, or with every problem of the file.
    """
    known = _SIZES.sub("", name_or_path.lower()).replace("_", "-")
    known = _ALIASES.get(known, known)
    if known in names():
        return _read(CLUSTERS_DIR / f"{known}.toml")
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        return _read(path)
    raise UcllmError(
        "cluster.unknown",
        _("There is no cluster `{name}`.").format(name=name_or_path),
        _("A cluster is one that comes with ucllm, or the path of a TOML file of your own."),
        did_you_mean(known, names()),
    )


def _read(path: Path) -> Cluster:
    document = load_toml(path)
    fields = {item.name: item for item in dataclasses.fields(Cluster)}
    problems: list[Problem] = []
    values: dict[str, Any] = {"name": path.stem}
    for key, value in document.items():
        if key not in fields:
            what = _("Unknown key `{key}` in {where}.").format(key=key, where=path)
            problems.append(Problem("cluster.unknown-key", what, hint=did_you_mean(key, list(fields))))
            continue
        kind = str(fields[key].type)
        if not _CHECKS[kind](value):
            what = _("`{key}` in {where} must be {kind}.").format(key=key, where=path, kind=_(_KINDS[kind]))
            problems.append(Problem("cluster.invalid-value", what))
            continue
        values[key] = tuple(value) if isinstance(value, list) else value
    found = Cluster(**values)
    problems += [Problem(code, f"{path}: {what}", hint=hint) for code, what, hint in _wrong(found)]
    if problems:
        raise UcllmError.of(problems)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": _is_number,
    "float": lambda value: _is_number(value) or isinstance(value, float),
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "Mapping[str, str]": lambda value: (
        isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    ),
}
_KINDS = {
    "str": N_("a text"),
    "int": N_("a whole number"),
    "float": N_("a number"),
    "tuple[str, ...]": N_("a list of texts"),
    "Mapping[str, str]": N_("a table of texts"),
}


def _wrong(cluster: Cluster) -> list[tuple[str, str, str]]:
    """Values out of their limits, and values that contradict each other: code, what, hint."""
    return [("cluster.invalid-value", *each) for each in _out_of_limits(cluster)] + [
        ("cluster.contradiction", *each) for each in _contradictions(cluster)
    ]


def _out_of_limits(cluster: Cluster) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if not re.fullmatch(r"[\w.-]+", cluster.name):
        found.append((_("`name` must be of letters, digits, `.`, `_` and `-`."), ""))
    for key, value, choices in (
        ("scheduler", cluster.scheduler, SCHEDULERS),
        ("launcher", cluster.launcher, LAUNCHERS),
    ):
        if value not in choices:
            what = _("`{key}` is `{value}`, which is not known.").format(key=key, value=value)
            found.append((what, did_you_mean(value, choices)))
    for key, number, low, high in (
        ("nodes", cluster.nodes, 1, 100_000),
        ("gpus_per_node", cluster.gpus_per_node, 0, 1024),
        ("cpus_per_node", cluster.cpus_per_node, 0, 100_000),
        ("minimum_cpus", cluster.minimum_cpus, 0, 100_000),
        ("ssh_port", cluster.ssh_port, 1, 65_535),
        ("gpu_memory_gb", cluster.gpu_memory_gb, 0, 100_000),
    ):
        if not low <= number <= high:
            what = _("`{key}` is {value}; it must be from {low} to {high}.")
            found.append((what.format(key=key, value=number, low=low, high=high), ""))
    if cluster.time_limit and not _TIME.fullmatch(cluster.time_limit):
        what = _("`time_limit` is `{value}`; it must be HH:MM:SS, or D-HH:MM:SS.").format(value=cluster.time_limit)
        found.append((what, _('Write `time_limit = "06:00:00"` for six hours.')))
    for variable in cluster.environment:
        if is_secret(variable):
            what = _("`environment.{name}` looks like a secret, and what is set here is written to files.")
            found.append((what.format(name=variable), _("Leave it out; log in on the machine instead.")))
        elif not re.fullmatch(r"[A-Za-z_]\w*", variable):
            found.append((_("`environment.{name}` is not the name of a variable.").format(name=variable), ""))
    lines = (cluster.partition, *cluster.partitions.values(), *cluster.submit_options, *cluster.modules, *cluster.hosts)
    if any("\n" in line for line in lines):
        found.append((_("A value has more than one line."), ""))
    return found


def _contradictions(cluster: Cluster) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    asked: Sequence[tuple[str, object]] = (
        ("partition", cluster.partition),
        ("partitions", cluster.partitions),
        ("time_limit", cluster.time_limit),
        ("submit_options", cluster.submit_options),
    )
    if cluster.scheduler == "none":
        for key, value in asked:
            if value:
                what = _("`{key}` is asked of a scheduler, and `scheduler` is `none`.").format(key=key)
                found.append((what, _('Write `scheduler = "slurm"`, or leave `{key}` out.').format(key=key)))
    elif cluster.hosts:
        found.append((_("`hosts` is for machines without a scheduler; a job's nodes are the scheduler's choice."), ""))
    if cluster.scheduler == "sge" and not cluster.partition:
        found.append((_("With SGE `partition` must name the resource that a node is asked for by."), ""))
    if cluster.scheduler == "none" and cluster.nodes > max(1, len(cluster.hosts)):
        what = _("`nodes` is {nodes}, and `hosts` names {count}.")
        found.append((what.format(nodes=cluster.nodes, count=len(cluster.hosts)), ""))
    if len(set(cluster.hosts)) < len(cluster.hosts):
        found.append((_("`hosts` names a machine twice."), ""))
    if cluster.scheduler != "slurm" and cluster.launcher == "deepspeed-no-ssh":
        hint = _('Use `launcher = "deepspeed"`, which reaches them over ssh.')
        found.append((_("Launcher `deepspeed-no-ssh` starts the nodes with Slurm's srun."), hint))
    if cluster.modules_from and not cluster.modules:
        found.append((_("`modules_from` is given without `modules`."), ""))
    if cluster.minimum_cpus > cluster.cpus_per_node:
        found.append((_("`minimum_cpus` is more than `cpus_per_node`."), ""))
    return found
