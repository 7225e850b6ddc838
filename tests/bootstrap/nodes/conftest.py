"""Nodes that are this machine, behind a stand-in for ssh and srun that takes the real ones' arguments."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootstrap.requirements import NODES
from tests.bootstrap.conftest import Outcome, Tiny

#: Like ssh, it joins its arguments and gives them to a shell. What a host does is in its name.
SSH = r"""#!/bin/sh
while :; do
    case "$1" in
        -F) config=$2; shift 2;;
        -o) shift 2;;
        *) break;;
    esac
done
host=$1; shift
[ "$1" = "--" ] && shift
echo "$host ${config:--}" >> "$STUB/ssh.log"
case "$host" in
    gone*) echo "ssh: connect to host $host port 22: Connection refused" >&2; exit 255;;
    hangs*) exec sleep 60;;
    junk*) echo "Please change your password."; exit 0;;
    banner*) echo "Welcome to $host"; echo '{"not": "ours"}'; sh -c "$*"; echo "bye";;
    torch*) sh -c "$*" | sed 's/"torch": "9.9+cpu"/"torch": "8.8+cpu"/';;
    old*) sh -c "$*" | sed 's/"gpu": {/"gpu": 3, "was": {/';;
    bare*) exec sh -c "$(printf %s "$*" | sed "s#^[^ ]*#$STUB/nowhere/bin/python#")";;
    lacks*) exec sh -c "$(printf %s "$*" | sed "s#$WORKSPACE#/nowhere/ws#g")";;
    copy*) exec sh -c "$(printf %s "$*" | sed "s#$WORKSPACE#$STUB/ws#g")";;
    *) exec sh -c "$*";;
esac
"""
#: Like srun, it starts the words as they are, and tells of a failure in its own line.
SRUN = r"""#!/bin/sh
while :; do
    case "$1" in
        --nodelist=*) host=${1#*=}; shift;;
        --*) shift;;
        *) break;;
    esac
done
echo "$host" >> "$STUB/srun.log"
case "$host" in
    gone*) echo "srun: error: Unable to create step for job 7: Requested nodes are busy" >&2; exit 1;;
    bare*) echo "slurmstepd: error: execve(): $1: No such file or directory" >&2
           echo "srun: error: $host: task 0: Exited with exit code 2" >&2; exit 2;;
    *) exec "$@";;
esac
"""
#: A name that is not this machine's for us, and is for the network.
FIRST = "127.0.0.2"


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Nodes:
    """A workspace, stand-ins on ``PATH``, and the doctor on nodes with these names."""

    tiny: Tiny
    port: int

    @property
    def stub(self) -> Path:
        return self.tiny.root / "stub"

    def log(self, program: str) -> list[str]:
        path = self.stub / f"{program}.log"
        return sorted(path.read_text(encoding="utf-8").splitlines()) if path.exists() else []

    def hostfile(self, *hosts: str) -> str:
        path = self.stub / "hostfile"
        path.write_text("".join(f"{name} slots=1\n" for name in hosts), encoding="utf-8")
        return str(path)

    def __call__(self, *hosts: str, options: tuple[str, ...] = ()) -> Outcome:
        """`doctor --hostfile` with these hosts after the first, which is :data:`FIRST`."""
        file = self.hostfile(FIRST, *hosts)
        return self.tiny.doctor("--hostfile", file, "--master-port", str(self.port), *options)


@pytest.fixture
def nodes(healthy: Tiny) -> Nodes:
    made = Nodes(healthy, free_port())
    made.stub.mkdir()
    for name, text in (("ssh", SSH), ("srun", SRUN)):
        (made.stub / name).write_text(text, encoding="utf-8")
        (made.stub / name).chmod(0o755)
    healthy.variables |= {
        "PATH": f"{made.stub}:{os.environ['PATH']}",
        "STUB": str(made.stub),
        "WORKSPACE": str(healthy.workspace),
        "SLURM_JOB_ID": "",
    }
    return made


@pytest.fixture
def hurried(nodes: Nodes) -> Nodes:
    """Those that are waited for in vain are not waited for as long as real ones."""
    nodes.tiny.patch += "\nimport bootstrap.facts.nodes as n\nn.MEETING_S = 2.0\nn.NODE_TIMEOUT_S = 20.0"
    return nodes


def of_nodes(seen: Outcome) -> dict[str, str]:
    """The statuses of the checks about nodes; all of them are there, after the profile's own."""
    statuses = seen.statuses
    assert tuple(statuses)[-len(NODES) :] == NODES
    return {name: statuses[name] for name in NODES}
