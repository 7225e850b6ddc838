"""Job scripts: what asks a scheduler for nodes and then runs ``ucllm train`` on the first of them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.launch import Machines
from pipeline.launch.cluster import Cluster

#: Seconds before the time limit at which Slurm sends SIGTERM, so that training ends with a checkpoint. An estimate: a
#: checkpoint of 1.3 B parameters with optimizer is 20 GB, and shared storage takes 100 MB/s.
NOTICE = 300
#: Seconds that sbatch may take; it waits for a busy controller by itself.
_PATIENCE = 120


def job_script(
    cluster: Cluster, machines: Machines | tuple[int, int], command: Sequence[str], log_dir: Path, name: str
) -> str:
    """The script for ``cluster``'s scheduler; ``machines`` may be the pair (nodes, GPUs on each).

    It loads the modules and becomes ``command``, on the first node: the command's exit code is the job's, and what the
    scheduler signals reaches it. Output goes to ``log_dir/NAME-JOB.log``. Raises :class:`UcllmError` when there is no
    scheduler, or when it could not take ``log_dir``.
    """
    count, gpus = machines if isinstance(machines, tuple) else (len(machines.hosts), machines.slots)
    name = re.sub(r"[^\w.-]", "_", name) or "ucllm"
    if cluster.scheduler == "slurm":
        head = _sbatch_lines(cluster, count, gpus, log_dir, name)
    elif cluster.scheduler == "sge":
        head = _qsub_lines(cluster, count, gpus, log_dir, name)
    else:
        raise UcllmError(
            "submit.no-scheduler",
            _("Cluster `{name}` has no scheduler to submit to.").format(name=cluster.name),
            hint=_("Leave out `--submit`."),
        )
    return "\n".join(["#!/bin/bash", *head, "", *_body(cluster, command)]) + "\n"


def _body(cluster: Cluster, command: Sequence[str]) -> list[str]:
    lines = ["set -eo pipefail"]
    if cluster.modules:
        lines += [f"source {shlex.quote(cluster.modules_from)}"] if cluster.modules_from else []
        lines += ["module purge", shlex.join(["module", "load", *cluster.modules])]
    lines += [
        "# Only now: the files that define `module` read variables that are not set.",
        "set -u",
        '# Data loaders and checkpoints open many files ("Too many open files" of the guides): as many as are allowed.',
        'ulimit -n "$(ulimit -Hn)" || true',
    ]
    if cluster.scheduler == "slurm":
        lines += [
            "# From Slurm 22.05 on srun does not take over the job's processors by itself.",
            'if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi',
        ]
    return [*lines, f"exec {shlex.join(command)}"]


def _sbatch_lines(cluster: Cluster, count: int, gpus: int, log_dir: Path, name: str) -> list[str]:
    # `%` introduces a replacement in the name of the log, and sbatch reads quotes as a shell does.
    log = str(log_dir).replace("%", "%%") + "/%x-%j.log"
    if "\n" in log:
        raise _bad_folder(log_dir)
    quoted = log.replace("\\", "\\\\").replace('"', '\\"')
    cpus = cluster.cpus(gpus)
    options = [
        f"--job-name={name}",
        f"--partition={cluster.resource(count, gpus)}" if cluster.partition else "",
        f"--nodes={count}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={gpus}" if gpus else "",
        f"--cpus-per-task={cpus}" if cpus else "",
        f"--time={cluster.time_limit}" if cluster.time_limit else "",
        f"--signal=B:TERM@{NOTICE}",
        f'--output="{quoted}"',
        *cluster.submit_options,
    ]
    return [f"#SBATCH {option}" for option in options if option]


def _qsub_lines(cluster: Cluster, count: int, gpus: int, log_dir: Path, name: str) -> list[str]:
    # Grid Engine has no quoting here that could be relied on, `:` names a host and `$` a variable.
    if not re.fullmatch(r"[\w./@%+=,-]+", str(log_dir)):
        raise _bad_folder(log_dir)
    options = [
        f"-N {name if name[0].isalpha() else f'ucllm-{name}'}",  # a name must not begin with a digit
        f"-l {cluster.resource(count, gpus)}={count}",
        f"-l h_rt={cluster.time_limit}" if cluster.time_limit else "",
        "-cwd",
        "-j y",
        f"-o {log_dir}/{name}-$JOB_ID.log",
        *cluster.submit_options,
    ]
    return [f"#$ {option}" for option in options if option]


def _bad_folder(folder: Path) -> UcllmError:
    return UcllmError(
        "submit.folder",
        _("The scheduler cannot write its log into {path}.").format(path=folder),
        _("The path has characters that a job script cannot name."),
        _("Use a workspace whose path has only letters, digits and `@+=,./-_`."),
    )


def submit_command(script: Path, cluster: Cluster) -> list[str]:
    """The words that submit ``script`` to the scheduler of ``cluster``."""
    if cluster.scheduler == "sge":
        # ABCI bills a group, which is the user's to name; it cannot stand in the script.
        return ["qsub", "-g", "YOUR_GROUP", str(script)]
    return ["sbatch", "--parsable", str(script)]


def submit(script: Path, cluster: Cluster) -> str:
    """Submit ``script`` and return the job's id.

    Raises :class:`UcllmError` when there is no sbatch, when it refuses, and for SGE, where the user submits: the
    hint is the exact command.
    """
    command = submit_command(script, cluster)
    if cluster.scheduler != "slurm":
        raise UcllmError(
            "submit.by-hand",
            _("The job script is written, and not submitted: {path}.").format(path=script),
            _("Grid Engine needs your group, which only you know."),
            _("Run `{command}`.").format(command=shlex.join(command)),
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except FileNotFoundError as error:
        raise UcllmError(
            "submit.no-sbatch",
            _("There is no `sbatch` on PATH."),
            _("A job is submitted from the login node of the cluster."),
            _("Log in there and run `{command}`.").format(command=shlex.join(command)),
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UcllmError(
            "submit.timeout",
            _("sbatch did not answer for {seconds} seconds.").format(seconds=_PATIENCE),
            _("The job may have been submitted or not."),
            _("See `squeue --me` before you submit again."),
        ) from error
    # `--parsable` prints `ID`, or `ID;CLUSTER` where Slurm serves several.
    job = done.stdout.strip().partition(";")[0]
    if done.returncode or not job.isdigit():
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise UcllmError(
            "submit.refused",
            _("sbatch refused the job (exit code {code}).").format(code=done.returncode),
            said,
            _("Change what it names, or see `sinfo` for partitions and limits: {path}.").format(path=script),
        )
    return job
