"""Facts of every node of a job: each is asked by :mod:`bootstrap.facts.node` there, all side by side.

ucllm must lie at the same path on each node, as it does on shared storage. A node that does not answer, or says
something else, is a state of :class:`~bootstrap.facts.NodeFacts` with what was said; the others are not held up.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shlex
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap import host
from bootstrap.facts import NodeFacts, NodesFacts
from bootstrap.facts.answer import MARK, said
from bootstrap.facts.collect import Request
from bootstrap.facts.files import decode
from bootstrap.facts.network import port_number
from pipeline.i18n import _, language

#: How long a node may take to answer, in seconds. A cold network file system takes most of it.
NODE_TIMEOUT_S = 80.0
#: How long the nodes try to meet at the master port, in seconds: longer than one login takes more than another.
MEETING_S = 20.0
#: What each node runs. Nothing of the folder that ssh starts in is imported: it would come first.
_START = "import sys; sys.path[0] = sys.argv[1]; from bootstrap.facts.node import main; main()"
#: What ssh exits with when it could not log in; else it is the command's own code (ssh's manual page).
_SSH_FAILED = 255


@dataclass(frozen=True)
class Job:
    """The nodes to ask: names with their slots, in the job's order, the first being where all processes meet.

    ``over`` is ``ssh`` or ``srun``; ``ssh_config`` is a file to use instead of the user's own. ``port`` 0 is
    ``MASTER_PORT``, else the profile's. ``address`` is how the others reach the first node; empty: by its name here.
    """

    hosts: tuple[tuple[str, int], ...]
    port: int = 0
    over: str = "ssh"
    ssh_config: Path | None = None
    address: str = ""

    def way(self, name: str) -> list[str]:
        """The words before a command that is to run on the node ``name``."""
        if self.over == "srun":
            # Beside what runs already: a step of its own would wait for the job's script to leave it resources.
            return ["srun", "--nodes=1", "--ntasks=1", "--overlap", f"--nodelist={name}"]
        config = ["-F", str(self.ssh_config)] if self.ssh_config else []
        return ["ssh", *config, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", name, "--"]


def default_way() -> str:
    """``srun`` inside a Slurm job, where nodes may refuse ssh; else ``ssh``."""
    return "srun" if os.environ.get("SLURM_JOB_ID") and shutil.which("srun") else "ssh"


def collect(request: Request) -> NodesFacts:
    """Ask every node of the job; without one there are none.

    For the time of it a file with a name of its own lies in the workspace: the nodes that see it share it.
    """
    job = request.job
    if job is None or not job.hosts:
        return NodesFacts()
    request.section("network")  # it tries the same port here
    port = job.port or port_number(os.environ.get("MASTER_PORT", "")) or request.profile.machine.port
    asked: dict[str, Any] = {
        "workspace": str(request.workspace.root),
        "profile": str(request.profile.folder),
        "language": language(),
        "port": port,
        "address": job.address or job.hosts[0][0],
        "others": len(job.hosts) - 1,
        "seconds": MEETING_S,
        "word": secrets.token_hex(16),
        "marker": f".ucllm-nodes-{secrets.token_hex(8)}",
    }
    marker, marker_error = request.workspace.root / asked["marker"], ""
    try:
        marker.touch(exist_ok=False)
    except OSError as error:
        asked["marker"], marker_error = "", error.strerror or str(error)
    try:
        with ThreadPoolExecutor(max_workers=len(job.hosts)) as pool:
            each = [
                {**asked, "host": name, "slots": slots, "first": name == job.hosts[0][0]} for name, slots in job.hosts
            ]
            nodes = tuple(pool.map(lambda one: ask(job, one), each))
    finally:
        if asked["marker"]:
            marker.unlink(missing_ok=True)
    by_hand = shlex.join([*job.way("HOST"), "true"])
    return NodesFacts(nodes, job.over, port, asked["address"], marker_error, by_hand, sys.executable)


def ask(job: Job, asked: dict[str, Any]) -> NodeFacts:
    """What one node says."""
    name = asked["host"]
    silent = NodeFacts(name, asked["slots"], "silent")
    if name.startswith("-"):  # ssh would take it for an option, which may run programs
        return dataclasses.replace(silent, state="unreachable", error=_("this is no name of a host"))
    code = str(Path(__file__).parents[2])
    words = [sys.executable, "-c", _START, code, MARK, json.dumps(asked)]
    if not is_here(name):
        # A remote shell reads what ssh is given; srun starts it without one.
        words = [*job.way(name), *(words if job.over == "srun" else [shlex.join(words)])]
    try:
        done = host.capture(words, timeout_s=NODE_TIMEOUT_S)
    except TimeoutError:
        return dataclasses.replace(silent, error=_("no answer in {seconds} s").format(seconds=round(NODE_TIMEOUT_S)))
    except OSError as error:
        return dataclasses.replace(silent, state="unreachable", error=f"{words[0]}: {error.strerror or error}")
    answers = said(done.stdout)
    if answers:
        try:
            facts: NodeFacts = decode(NodeFacts, answers[-1], name)
        except (TypeError, ValueError) as error:  # another ucllm's
            return dataclasses.replace(silent, state="mute", error=str(error))
        return facts
    # What srun says of a command that failed is no more than its exit code.
    lines = [line for line in done.stderr.strip().splitlines() if "Exited with exit code" not in line]
    refused = done.code == _SSH_FAILED if job.over == "ssh" else any(line.startswith("srun: error") for line in lines)
    lines = lines or done.stdout.strip().splitlines() or [_("nothing, and exit code {code}").format(code=done.code)]
    state = "unreachable" if refused and not is_here(name) else "mute"
    return dataclasses.replace(silent, state=state, error=lines[-1][:300])


def is_here(name: str) -> bool:
    """Whether a node's name is this machine's: asked without ssh, which need not lead back here."""
    here, name = socket.gethostname().lower(), name.lower()
    if name in ("localhost", "127.0.0.1", "::1", here):
        return True
    # A name with a domain and one without may be the same; two domains are two machines.
    return ("." in name) != ("." in here) and name.split(".")[0] == here.split(".")[0]
