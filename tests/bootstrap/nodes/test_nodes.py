"""`ucllm doctor --hostfile`: each node is asked for real, over a stand-in for ssh or srun, and told apart by name."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from bootstrap import nodes as api
from bootstrap import profiles
from bootstrap.facts import nodes as collector
from bootstrap.requirements import NODES
from bootstrap.workspace import Workspace
from tests.bootstrap.conftest import Outcome, Tiny, relocate
from tests.bootstrap.nodes.conftest import FIRST, Nodes, of_nodes

HEALTHY = {
    "nodes.reachable": "ok",
    "nodes.workspace": "ok",
    "nodes.versions": "ok",
    "nodes.driver": "skipped",
    "nodes.gpus": "skipped",
    "nodes.interfaces": "ok",
    "nodes.port": "ok",
}


def _finding(seen: Outcome, name: str) -> dict[str, Any]:
    (found,) = [item for item in seen.json["data"]["findings"] if item["id"] == name]
    assert isinstance(found, dict)
    return found


def _about(seen: Outcome, name: str) -> str:
    """What a finding says, evidence and remedy too."""
    return json.dumps(_finding(seen, name))


@pytest.fixture(autouse=True)
def _a_network(nodes: Nodes) -> None:
    """Whatever this machine has: an interface that leads to other nodes."""
    # In the processes of the nodes too, which only share what they are told.
    nodes.tiny.patch += "\nimport bootstrap.requirements.nodes_interfaces as i\ni._outward = lambda node: ['eth0']"


def test_two_healthy_nodes(nodes: Nodes) -> None:
    seen = nodes("node-b")
    assert (seen.code, of_nodes(seen)) == (0, HEALTHY), seen.out
    assert nodes.log("ssh") == [f"{FIRST} -", "node-b -"]
    assert "torch 9.9+cpu" in _finding(seen, "nodes.versions")["summary"]
    assert not list(nodes.tiny.workspace.glob(".ucllm-nodes-*")), "the file that showed the sharing is gone"
    text = nodes.tiny("doctor", "--hostfile", nodes.hostfile(FIRST, "node-b"), "--master-port", str(nodes.port)).out
    assert "The nodes of the job" in text


def test_without_a_hostfile_nothing_is_said_of_nodes(nodes: Nodes) -> None:
    assert not {*nodes.tiny.doctor().statuses} & {*NODES}
    for name in profiles.profile_names():
        assert not {*profiles.load(name).requirements} & {*NODES}


def test_this_machine_is_asked_without_ssh(nodes: Nodes) -> None:
    seen = nodes.tiny.doctor("--hostfile", nodes.hostfile("localhost"), "--master-port", str(nodes.port))
    assert (seen.code, of_nodes(seen)) == (0, {**HEALTHY, "nodes.interfaces": "skipped"})
    assert nodes.log("ssh") == []


def test_a_configuration_for_ssh_is_handed_on_and_goes_before_srun(nodes: Nodes) -> None:
    nodes.tiny.variables["SLURM_JOB_ID"] = "7"
    file = nodes.stub / "ssh config"
    file.touch()
    seen = nodes("node-b", options=("--ssh-config", str(file)))
    assert (seen.code, of_nodes(seen)) == (0, HEALTHY)
    assert nodes.log("ssh") == [f"{FIRST} {file}", f"node-b {file}"]
    assert nodes.log("srun") == []


def test_inside_a_slurm_job_nodes_are_asked_by_srun(nodes: Nodes) -> None:
    nodes.tiny.variables["SLURM_JOB_ID"] = "7"
    seen = nodes("node-b")
    assert (seen.code, of_nodes(seen)) == (0, HEALTHY), seen.out
    assert nodes.log("srun") == [FIRST, "node-b"]
    assert nodes.log("ssh") == []


def test_what_srun_says_of_a_node(hurried: Nodes) -> None:
    hurried.tiny.variables["SLURM_JOB_ID"] = "7"
    lost = hurried("gone-1", "bare-1")
    found = _finding(lost, "nodes.reachable")
    assert (lost.code, found["summary"]) == (1, "No answer from gone-1.")
    assert "Requested nodes are busy" in found["evidence"][0]
    assert "execve()" in found["evidence"][1], "the node's own words, not srun's exit code"
    assert found["remedy"]["commands"] == ["srun --nodes=1 --ntasks=1 --overlap --nodelist=gone-1 true"]


@pytest.mark.parametrize(
    ("host", "status", "code", "words"),
    [
        ("gone-1", "fail", 1, "gone-1: ssh: connect to host gone-1 port 22: Connection refused"),
        ("hangs-1", "fail", 1, "hangs-1: no answer in 20 s"),
        ("junk-1", "unknown", 3, "junk-1: Please change your password."),
        ("bare-1", "unknown", 3, "nowhere/bin/python"),
        ("old-1", "unknown", 3, "old-1: old-1.gpu: int"),
        ("-oProxyCommand=touch${IFS}proxied", "fail", 1, "no name of a host"),
    ],
)
def test_a_node_that_does_not_answer_is_named(hurried: Nodes, host: str, status: str, code: int, words: str) -> None:
    seen = hurried(host)
    found = _finding(seen, "nodes.reachable")
    assert (seen.code, found["status"]) == (code, status)
    assert host in found["summary"]
    assert any(words in line for line in found["evidence"]), found["evidence"]
    assert found["remedy"]["text"]
    assert "Traceback" not in seen.out + seen.err
    assert {of_nodes(seen)[name] for name in NODES[1:]} == {"blocked"}
    assert not list(hurried.tiny.root.rglob("proxied"))


def test_what_a_login_prints_is_passed_over(nodes: Nodes) -> None:
    seen = nodes("banner-1")
    assert (seen.code, of_nodes(seen)) == (0, HEALTHY)


@pytest.mark.slow
def test_one_login_that_hangs_holds_up_no_other(hurried: Nodes) -> None:
    began = time.monotonic()
    found = _finding(hurried("hangs-1", "hangs-2", "gone-1", "node-b"), "nodes.reachable")
    assert found["summary"] == "No answer from hangs-1, hangs-2, gone-1."
    assert time.monotonic() - began < 39, "one after another would take as long twice"


def test_a_node_with_another_torch(nodes: Nodes) -> None:
    seen = nodes("node-b", "torch-1")
    assert (seen.code, of_nodes(seen)) == (1, {**HEALTHY, "nodes.versions": "fail"})
    found = _finding(seen, "nodes.versions")
    assert found["summary"] == "torch-1 differ from the rest: torch."
    assert found["evidence"] == [f"torch: 9.9+cpu on {FIRST}, node-b; 8.8+cpu on torch-1"]


def test_a_workspace_that_is_not_there_and_one_that_is_another(nodes: Nodes) -> None:
    seen = nodes("lacks-1")
    assert seen.code == 1
    assert of_nodes(seen) == {**HEALTHY, "nodes.workspace": "fail", "nodes.versions": "fail"}
    assert f"There is no folder {nodes.tiny.workspace} on lacks-1." == _finding(seen, "nodes.workspace")["summary"]
    assert "lacks-1" in _finding(seen, "nodes.versions")["summary"]
    shutil.copytree(nodes.tiny.workspace, nodes.stub / "ws", symlinks=True)
    relocate(nodes.tiny.workspace, Tiny(nodes.stub))
    seen = nodes("copy-1")
    assert (seen.code, of_nodes(seen)) == (1, {**HEALTHY, "nodes.workspace": "fail"})
    assert "another folder on copy-1" in _finding(seen, "nodes.workspace")["summary"]


def test_a_taken_port(nodes: Nodes) -> None:
    with socket.create_server(("", nodes.port)):
        seen = nodes("node-b")
        assert (seen.code, of_nodes(seen)) == (1, {**HEALTHY, "nodes.port": "fail"})
        found = _finding(seen, "nodes.port")
        assert found["summary"] == f"Port {nodes.port} is taken on {FIRST}."
        assert "pytest" in found["evidence"][1] or "python" in found["evidence"][1]
    assert of_nodes(nodes("node-b"))["nodes.port"] == "ok"


def test_a_first_node_whose_name_leads_elsewhere(hurried: Nodes) -> None:
    """As a name that only ssh knows, or one that means another machine to the others."""
    file = hurried.hostfile("alias-of-nobody.invalid", "node-b")
    seen = hurried.tiny.doctor("--hostfile", file, "--master-port", str(hurried.port))
    assert (seen.code, of_nodes(seen)) == (1, {**HEALTHY, "nodes.port": "fail"})
    assert "node-b: the name is not known here" in _about(seen, "nodes.port")


def test_saved_facts_say_the_same_elsewhere_and_hold_no_names(nodes: Nodes) -> None:
    file = nodes.stub / "facts.json"
    here = nodes("torch-1", "secret-name-7", options=("--save-facts", str(file)))
    text = file.read_text(encoding="utf-8")
    assert "secret-name-7" not in text
    there = nodes.tiny.doctor("--facts", str(file))
    assert (there.code, of_nodes(there)) == (here.code, of_nodes(here)) == (1, {**HEALTHY, "nodes.versions": "fail"})
    assert _finding(there, "nodes.versions")["summary"].startswith("node-1 differ")


def test_the_variables_of_a_login_are_not_answered(nodes: Nodes) -> None:
    nodes.tiny.variables |= {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "w-secret"}
    seen = nodes("node-b", options=("--save-facts", str(nodes.stub / "facts.json")))
    assert seen.code == 0
    assert "secret" not in seen.out + (nodes.stub / "facts.json").read_text(encoding="utf-8")


def test_fixing_looks_at_the_nodes_again(nodes: Nodes) -> None:
    for path in nodes.tiny.site.glob("beta*"):
        path.rename(nodes.tiny.root / path.name)
    broken = nodes("node-b")
    command = broken.json["data"]["fix_command"]
    assert f"--hostfile {nodes.stub / 'hostfile'} --master-port {nodes.port}" in command
    seen = nodes("node-b", options=("--fix", "--yes"))
    assert (seen.code, of_nodes(seen)) == (0, HEALTHY), seen.out


def test_only_one_of_them_is_asked_for(nodes: Nodes) -> None:
    assert nodes("node-b", options=("--only", "nodes.port")).statuses == {"nodes.port": "ok"}
    assert set(nodes("node-b", options=("--skip", "nodes")).statuses) == {"env.python", "env.packages"}


def test_the_function_that_a_launch_calls(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in nodes.tiny.variables.items():
        monkeypatch.setenv(name, value)
    profile = profiles.load(str(nodes.tiny.lock))
    workspace = Workspace(nodes.tiny.workspace)
    found = api.findings([(FIRST, 1), ("torch-1", 1)], nodes.port, workspace, profile)
    assert tuple(item.id for item in found) == NODES
    assert {item.id: item.status for item in found if item.id != "nodes.interfaces"} == {
        name: "fail" if name == "nodes.versions" else status
        for name, status in HEALTHY.items()
        if name != "nodes.interfaces"
    }
    # The others are told another name for the first node than the list has.
    found = api.findings([("first", 1), ("second", 1)], nodes.port, workspace, profile, address=FIRST)
    assert found[-1].status == "ok"


@pytest.mark.parametrize(
    ("name", "here", "same"),
    [
        ("localhost", "n1", True),
        ("N1", "n1", True),
        ("n1.example.org", "n1", True),
        ("n1", "n1.example.org", True),
        ("n1.a", "n1.b", False),
        ("n2", "n1", False),
    ],
)
def test_which_name_is_this_machine(monkeypatch: pytest.MonkeyPatch, name: str, here: str, same: bool) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: here)
    assert collector.is_here(name) is same


def test_a_workspace_that_cannot_be_written_here(nodes: Nodes) -> None:
    nodes.tiny.patch += (
        "\nimport pathlib\nreal = pathlib.Path.touch\n"
        "def touch(self, *args, **more):\n"
        "    if '.ucllm-nodes' in self.name: raise PermissionError(13, 'Permission denied')\n"
        "    return real(self, *args, **more)\n"
        "pathlib.Path.touch = touch"
    )
    seen = nodes("node-b")
    assert (seen.code, of_nodes(seen)) == (3, {**HEALTHY, "nodes.workspace": "unknown"})
    assert "Permission denied" in _about(seen, "nodes.workspace")


def test_nodes_see_no_module_of_the_folder_that_ssh_starts_in(nodes: Nodes) -> None:
    for name in ("json.py", "bootstrap.py"):
        Path(nodes.tiny.root / "home").mkdir(exist_ok=True)
        (nodes.tiny.root / "home" / name).write_text("raise SystemExit('mine')\n", encoding="utf-8")
    # The command line itself is started there by the tests, and must not see them either.
    nodes.tiny.variables["PYTHONSAFEPATH"] = "1"
    assert of_nodes(nodes("node-b")) == HEALTHY
