"""What stands in front of a training script: the words that start it once for every GPU of every node.

Facts of DeepSpeed 0.12.4 (``launcher/runner.py``, ``launch.py``, ``multinode_runner.py``) and of pdsh 2.34, by which
this is as it is:

- ``deepspeed`` over several nodes calls pdsh, and pdsh calls ssh. ``PDSH_SSH_ARGS_APPEND`` reaches that ssh, cut at
  blanks without regard to quotes. ``--ssh_port`` appends to that variable and, before 0.14.1, fails where it is
  not set; the port is in our ssh settings, so it is not needed.
- Before that, it runs ``ssh HOST hostname`` and ``ssh HOST hostname -I`` of its own, without those settings.
  ``--no_ssh_check`` and ``--master_addr`` leave them out. A published launch has neither; it gets :data:`SSH`.
- Of the environment only ``NCCL*``, ``PYTHON*``, ``UCX*``, ``MV2*`` and ``MLFLOW*`` reach the other nodes, and the
  lines of the file that ``DS_ENV_FILE`` names, which later versions quote and 0.12.4 does not.
- There is no ``--no_ssh`` and no ``--node_rank`` before 0.14.5. What those start is ``deepspeed.launcher.launch``,
  which is there in every version; with it srun starts each node.
- pdsh begins each line with ``HOST: `` and returns the largest exit code, but only when every node has ended: where one
  fails, the others are waited for. On SIGTERM the runner ends them all, each within 30 seconds.
- ``--num_gpus`` makes it forget ``CUDA_VISIBLE_DEVICES``, so a job that was given GPUs 2 and 3 would take 0 and 1.
- A script gets ``--local_rank=N`` as its first argument from DeepSpeed's launchers, and ``LOCAL_RANK`` from all.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _
from pipeline.launch import Launch, Machines, nodes
from pipeline.launch.cluster import is_secret

HOSTFILE, SSH_CONFIG, ENVIRONMENT = "hostfile", "ssh_config", "deepspeed_env"
#: An ``ssh`` with the run's settings: to be written executable, its folder first on PATH.
SSH = "bin/ssh"
_SSH = '#!/bin/sh\nPATH="${{PATH#*:}}"  # without the folder of this file\nexport PATH\nexec ssh -F {config} "$@"\n'
#: What may stand unquoted in a POSIX shell, and what pdsh (``%``) leaves alone.
_PLAIN = re.compile(r"[\w@+=:,./-]*")
_PLAIN_OR_BLANK = re.compile(r"[\w@+=:,./ #-]*")
#: Every node runs the same words, so the node's own number is put in by its shell.
_ON_A_NODE = 'exec "$0" -u -m {module} --node_rank="$SLURM_NODEID" "$@"'


def wrap(
    machines: Machines,
    script: str,
    flags: Sequence[str],
    *,
    interpreter_module: str | None = None,
    env: Mapping[str, str] | None = None,
    folder: Path = Path("launch"),
    node_rank: int | None = None,
    gpus_here: int = 0,
) -> Launch:
    """What starts ``script`` with ``flags`` on ``machines``, by the cluster's launcher.

    ``interpreter_module``: run ``python -m MODULE SCRIPT FLAGS`` instead of ``python SCRIPT FLAGS``. ``env``: variables
    that the script needs on every node, none of them secret; they and the cluster's come back in ``Launch.env``.
    ``folder``: where the launch's files will lie. ``node_rank``: only the part of that node, for a start by hand or
    from outside. ``gpus_here``: GPUs of this machine where that is known; on one node, fewer slots are then asked for.

    A launch on a CPU is torchrun's where the nodes need no ssh: DeepSpeed's launcher refuses a machine without GPUs.
    Raises :class:`UcllmError` with everything that the launcher could not carry to the processes.
    """
    launcher = _launcher(machines, node_rank)
    variables = {**machines.cluster.environment, **(env or {})}
    variables = {name: value for name, value in variables.items() if not is_secret(name)}
    words = [*(["--module", interpreter_module] if interpreter_module else []), script, *flags]
    several = len(machines.hosts) > 1
    if launcher == "torchrun":
        found = _per_node(machines, "torch.distributed.run", _torchrun(machines), words, node_rank)
        return Launch(found, variables)
    if launcher == "deepspeed-no-ssh":
        found = _per_node(machines, "deepspeed.launcher.launch", _world(machines), words, node_rank)
        return Launch(found, variables)
    problems = _mangled(flags, several)
    start = ["deepspeed"] if machines.compat else [str(machines.python), "-m", "deepspeed.launcher.runner"]
    # The published v0.3 launches name no port.
    port = ["--master_port", str(machines.port)] if machines.port and machines.compat != "v0.3" else []
    if not several:
        if problems:
            raise UcllmError.of(problems)
        count = ["--num_gpus", str(machines.slots)] if gpus_here and machines.slots != gpus_here else []
        return Launch((*start, *port, *([] if machines.compat else count), *words), variables)
    problems += _unreachable(machines, script, variables, folder)
    if problems:
        raise UcllmError.of(problems)
    ours = [] if machines.compat else ["--master_addr", machines.hosts[0], "--no_ssh_check"]
    files = {
        HOSTFILE: nodes.hostfile(machines.hosts, machines.slots),
        SSH_CONFIG: nodes.ssh_config(machines.cluster, machines.hosts, folder),
        ENVIRONMENT: "".join(f"{name}={value}\n" for name, value in sorted(variables.items())),
    }
    if machines.compat:
        files[SSH] = _SSH.format(config=shlex.quote(str(folder / SSH_CONFIG)))
    reach = {"PDSH_SSH_ARGS_APPEND": f"-F {folder / SSH_CONFIG}", "DS_ENV_FILE": str(folder / ENVIRONMENT)}
    argv = (*start, *port, "--hostfile", str(folder / HOSTFILE), *ours, *words)
    return Launch(argv, {**variables, **reach}, files)


def needs(machines: Machines) -> tuple[str, ...]:
    """The commands that must be on PATH where the launch starts, beside the environment's own."""
    if len(machines.hosts) == 1:
        return ()
    return ("pdsh", "ssh") if _launcher(machines, None) == "deepspeed" else ("srun",)


def _launcher(machines: Machines, node_rank: int | None) -> str:
    """The launcher that starts these machines, or the part of one of several."""
    if machines.compat:
        return "deepspeed"
    launcher, several = machines.cluster.launcher, len(machines.hosts) > 1
    if launcher == "torchrun" or (machines.device == "cpu" and (not several or node_rank is not None)):
        return "torchrun"
    if several:
        return "deepspeed-no-ssh" if node_rank is not None else launcher
    return "deepspeed"


def _torchrun(machines: Machines) -> list[str]:
    count = ["--nnodes", str(len(machines.hosts)), "--nproc_per_node", str(machines.slots)]
    return [*count, "--master_addr", _meeting_place(machines), *_port(machines)]


def _world(machines: Machines) -> list[str]:
    """DeepSpeed's own form of the hostfile, as ``encode_world_info`` of its runner writes it."""
    slots = list(range(machines.slots))
    world = json.dumps(dict.fromkeys(machines.hosts, slots))
    encoded = base64.urlsafe_b64encode(world.encode()).decode("ascii")
    return [f"--world_info={encoded}", "--master_addr", _meeting_place(machines), *_port(machines)]


def _port(machines: Machines) -> list[str]:
    return ["--master_port", str(machines.port or nodes.DEFAULT_PORT)]


def _meeting_place(machines: Machines) -> str:
    return machines.hosts[0] if len(machines.hosts) > 1 else "127.0.0.1"


def _per_node(
    machines: Machines, module: str, options: Sequence[str], words: Sequence[str], node_rank: int | None
) -> tuple[str, ...]:
    """``module`` once on every node: here on one node or for a given rank, else by srun."""
    count = len(machines.hosts)
    if count == 1 or node_rank is not None:
        return (str(machines.python), "-u", "-m", module, f"--node_rank={node_rank or 0}", *options, *words)
    if machines.cluster.scheduler != "slurm":
        raise UcllmError(
            "launch.unreachable",
            _("Launcher `{name}` cannot start {count} nodes here.").format(name=machines.cluster.launcher, count=count),
            _("It starts the other nodes with Slurm's srun, and this cluster has no Slurm."),
            _('Use `launcher = "deepspeed"` in the cluster\'s file, which reaches them over ssh.'),
        )
    srun = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    # Inside `srun --pty bash`, whose step holds the job's GPUs, a second step would wait for ever without it.
    srun += ["--overlap", *([f"--nodelist={','.join(machines.hosts)}"] if machines.job_id else [])]
    return (*srun, "sh", "-c", _ON_A_NODE.format(module=module), str(machines.python), *options, *words)


def _mangled(flags: Sequence[str], several: bool) -> list[Problem]:
    """Arguments that would not arrive as they are: DeepSpeed's runner joins and splits them again, pdsh's shell too."""
    found = []
    for flag in flags:
        bad = bool(set(flag) & set('"\\\n')) or (flag.startswith("-") and not _PLAIN.fullmatch(flag))
        if bad or (several and not _PLAIN_OR_BLANK.fullmatch(flag)):
            what = _("DeepSpeed's launcher cannot carry the argument `{argument}`.").format(argument=flag)
            why = _("It joins the arguments and splits them again, and other nodes read them with a shell.")
            found.append(Problem("launch.argument", what, why, _("Use letters, digits and `@+=:,./-_` in it.")))
    return found


def _unreachable(machines: Machines, script: str, variables: Mapping[str, str], folder: Path) -> list[Problem]:
    """What keeps DeepSpeed's start over ssh from working, seen from the words alone."""
    found = []
    for path in (script, str(machines.python), str(folder)):
        if not _PLAIN.fullmatch(path):
            what = _("DeepSpeed's launcher cannot carry the path {path} to other nodes.").format(path=path)
            why = _("It hands it to their shell unquoted.")
            hint = _("Use a workspace whose path has only letters, digits and `@+=:,./-_`.")
            found.append(Problem("launch.path", what, why, hint))
    for name, value in variables.items():
        if not _PLAIN.fullmatch(value):
            what = _("DeepSpeed's launcher cannot carry the variable {name} to other nodes.").format(name=name)
            why = _("Its value has characters that their shell would read.")
            found.append(Problem("launch.variable", what, why))
    return found
