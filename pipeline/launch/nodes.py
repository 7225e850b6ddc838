"""The nodes of a job and how they are reached: names, port, hostfile, ssh settings of the run's own.

Nothing of the user's (``~/.ssh``, ``~/.bashrc``) is written; the published scripts truncate the one and edit the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _
from pipeline.launch.cluster import Cluster

#: Of the variables that schedulers set: one that names the nodes, and files with a node a line (ABCI, SGE, PBS).
_NODE_LISTS = ("SLURM_JOB_NODELIST", "SLURM_NODELIST")
_NODE_FILES = ("SGE_JOB_HOSTLIST", "PE_HOSTFILE", "PBS_NODEFILE")
_JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "JOB_ID")
#: torch's and DeepSpeed's own default, outside a job.
DEFAULT_PORT = 29500
#: No machine has so many nodes; a typing error such as ``n[1-99999999]`` ends here instead of in memory.
_MOST_NODES = 100_000


def job_id(environ: Mapping[str, str]) -> str:
    """The number of the scheduler's job that this process belongs to; empty outside a job.

    Slurm, PBS (``12.server`` is 12) and SGE.
    """
    for name in _JOB_IDS:
        match = re.match(r"\d+", environ.get(name, ""))
        if match:
            return match.group()
    return ""


def inside(environ: Mapping[str, str]) -> bool:
    """Whether this process belongs to a scheduler's job."""
    return bool(job_id(environ))


def hosts(cluster: Cluster, nodes: int, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The first ``nodes`` nodes of the job, else of the cluster's own list, else ``node-0``, ``node-1`` and so on.

    Raises :class:`UcllmError` when there are fewer, or when what the scheduler says cannot be read.
    """
    found, source = _job_hosts(environ)
    if not found and cluster.hosts:
        found, source = cluster.hosts, "hosts"
    if not found:
        return tuple(f"node-{index}" for index in range(nodes))
    if len(found) < nodes:
        raise UcllmError(
            "launch.too-few-nodes",
            _("{asked} nodes are asked for, and there are {count}: {names}.").format(
                asked=nodes, count=len(found), names=", ".join(found)
            ),
            _("So says `{source}`.").format(source=source),
            _("Use `--nodes {count}`, or start a job with {asked} nodes.").format(count=len(found), asked=nodes),
        )
    return found[:nodes]


def of_job(environ: Mapping[str, str]) -> int:
    """How many nodes the scheduler's job has; 0 outside one. Raises as :func:`hosts`."""
    return len(_job_hosts(environ)[0])


def _job_hosts(environ: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """The nodes of the job in the scheduler's order, and the variable that says so; nothing outside a job."""
    for name in _NODE_LISTS:
        if environ.get(name):
            return expand(environ[name]), name
    for name in _NODE_FILES:
        if environ.get(name):
            try:
                lines = Path(environ[name]).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UcllmError(
                    "launch.node-list",
                    _("Cannot read the job's list of nodes {path}.").format(path=environ[name]),
                    _("`{name}` names it: {reason}.").format(name=name, reason=error),
                ) from error
            # SGE writes `host slots queue processors`; PBS repeats a host for each of its slots.
            return tuple(dict.fromkeys(line.split()[0] for line in lines if line.strip())), name
    return (), ""


def expand(text: str) -> tuple[str, ...]:
    """The names that Slurm's short form stands for: ``a[1-3,07-09],b5``, also ``rack[1-2]n[01-02]``.

    Raises :class:`UcllmError` when it is not of that form.
    """
    if not re.fullmatch(r"(?:[^\[\],\s]|\[[\d,-]+\])+(?:,(?:[^\[\],\s]|\[[\d,-]+\])+)*", text):
        raise _bad_list(text)
    found = tuple(islice(_names(text), _MOST_NODES + 1))
    if len(found) > _MOST_NODES:
        raise _bad_list(text)
    return found


def _bad_list(text: str) -> UcllmError:
    return UcllmError(
        "launch.node-list",
        _("`{text}` is not a list of nodes.").format(text=text),
        _("Slurm writes them as `a[1-3,07-09],b5`."),
    )


def _names(text: str) -> Iterator[str]:
    # Commas inside brackets separate numbers, those outside names.
    for item in re.split(r",(?![^\[]*\])", text):
        yield from _product(re.split(r"\[([\d,-]+)\]", item), text)


def _product(parts: Sequence[str], text: str) -> Iterator[str]:
    """``parts`` are texts and, at odd places, what was in brackets."""
    if len(parts) == 1:
        yield parts[0]
        return
    for number in _numbers(parts[1], text):
        for rest in _product(parts[2:], text):
            yield f"{parts[0]}{number}{rest}"


def _numbers(ranges: str, text: str) -> Iterator[str]:
    for item in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if not match:
            raise _bad_list(text)
        low, high = match.group(1), match.group(2) or match.group(1)
        if int(high) < int(low):
            raise _bad_list(text)
        for number in range(int(low), int(high) + 1):
            yield str(number).zfill(len(low))


def master_port(job: str) -> int:
    """The port where the processes of job ``job`` meet: 10000 + job mod 50000, as the published v0.71 scripts do it.

    So two jobs that share a node do not meet. Outside a job it is torch's own default.
    """
    return 10000 + int(job) % 50000 if job else DEFAULT_PORT


def hostfile(names: Sequence[str], slots: int) -> str:
    """DeepSpeed's hostfile for ``slots`` processes on each host."""
    return "".join(f"{name} slots={slots}\n" for name in names)


def parse_hostfile(text: str, where: str = "hostfile") -> tuple[tuple[str, int], ...]:
    """The hosts and slots of a hostfile as DeepSpeed reads it (0.12.4, ``launcher/runner.py``).

    Stricter in two points: nothing may follow the number, which DeepSpeed ignores, and 0 slots are refused. Raises
    :class:`UcllmError` with every problem, each with its line; ``where`` names the file in them.
    """
    found: dict[str, int] = {}
    first: dict[str, int] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        match = re.fullmatch(r"(\S+)\s+slots=(\d+)(?:\s+#.*)?", words)
        if not match or not int(match.group(2)):
            what = _("{where}, line {number}: `{line}` is not a host with slots.")
            hint = _("Write `{host} slots=8` for eight GPUs.").format(host=words.split()[0])
            problems.append(Problem("launch.hostfile", what.format(where=where, number=number, line=words), hint=hint))
        elif match.group(1) in found:
            what = _("{where}, line {number}: `{host}` stands there again, as in line {other}.")
            what = what.format(where=where, number=number, host=match.group(1), other=first[match.group(1)])
            problems.append(Problem("launch.hostfile", what, hint=_("One line a host, with all of its slots.")))
        else:
            found[match.group(1)], first[match.group(1)] = int(match.group(2)), number
    if not found and not problems:
        what = _("{where} names no host.").format(where=where)
        problems.append(Problem("launch.hostfile", what, hint=_("Write a line `node-0 slots=8` for each.")))
    if problems:
        raise UcllmError.of(problems)
    return tuple(found.items())


def ssh_config(cluster: Cluster, names: Sequence[str], folder: Path) -> str:
    """The settings of ``ssh -F`` for these hosts; keys that hosts show for the first time are kept in ``folder``.

    A host's key is noted at the first connection of this run and must stay the same after. Clusters make nodes anew,
    with new keys, so the user's own ``known_hosts`` would refuse them. The user's settings and the site's follow,
    because ``-F`` leaves both out: the first value that ssh finds for an option is the one it takes.
    """
    user = [f"    User {cluster.ssh_user}"] if cluster.ssh_user else []
    lines = [
        f"Host {' '.join(names)}",
        f"    Port {cluster.ssh_port}",
        *user,
        "    StrictHostKeyChecking accept-new",
        f'    UserKnownHostsFile "{folder / "known_hosts"}"',
        "    BatchMode yes",
        "    ConnectTimeout 10",
        "    LogLevel ERROR",
        "Host *",
        "    Include ~/.ssh/config",
        "    Include /etc/ssh/ssh_config",
    ]
    return "\n".join(lines) + "\n"
