"""`ucllm doctor --hostfile` as a command: what is a mistake in its use, and what is said of its checks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bootstrap.requirements import NODES
from tests.bootstrap.nodes.conftest import free_port
from tests.conftest import UCLLM, cli_environment


def _doctor(place: Path, *args: str) -> subprocess.CompletedProcess[str]:
    argv = [*UCLLM, "doctor", "--profile", "cpu", *args]
    env = {**cli_environment(place), "SLURM_JOB_ID": ""}
    return subprocess.run(argv, env=env, cwd=place, capture_output=True, text=True, timeout=120, check=False)


def test_every_line_that_is_wrong_in_a_hostfile_is_named(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node-a slots=8\nnode-b\nnode-c slots=many\nnode-a slots=8\n", encoding="utf-8")
    seen = _doctor(tmp_path, "--hostfile", "hosts", "--json")
    told = json.loads(seen.stdout)
    assert (seen.returncode, told["exit_code"], told["status"]) == (2, 2, "error")
    assert [item["message"].partition(":")[0] for item in told["errors"]] == [
        "hosts, line 2", "hosts, line 3", "hosts, line 4",
    ]  # fmt: skip
    assert all(item["hint"] for item in told["errors"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--hostfile", "not-there"), "Cannot read not-there"),
        (("--hostfile", "empty"), "names no host"),
        (("--hostfile", "binary"), "Cannot read binary"),
        (("--master-port", "29500"), "--hostfile"),
        (("--ssh-config", "empty"), "--hostfile"),
        (("--hostfile", "hosts", "--master-port", "70000"), "70000"),
        (("--hostfile", "hosts", "--ssh-config", "not-there"), "not-there"),
        (("--hostfile", "hosts", "--facts", "facts.json"), "no nodes can be asked"),
    ],
)
def test_mistakes_in_use(tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "hosts").write_text("localhost slots=1\n", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    seen = _doctor(tmp_path, *args)
    assert (seen.returncode, seen.stdout) == (2, "")
    assert words in seen.stderr
    assert "Traceback" not in seen.stderr


@pytest.mark.parametrize("name", NODES)
def test_each_check_explains_itself(tmp_path: Path, name: str) -> None:
    seen = _doctor(tmp_path, "--explain", name)
    assert seen.returncode == 0
    assert seen.stdout.startswith(f"{name}: ")
    assert "It is checked with --hostfile" in seen.stdout
    assert "of the guide" not in seen.stdout


def test_a_machine_alone_in_a_hostfile(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("localhost slots=1\n", encoding="utf-8")
    (tmp_path / "ws").mkdir()
    args = ("--hostfile", "hosts", "--only", "nodes", "--workspace", "ws", "--json", "--master-port", str(free_port()))
    seen = _doctor(tmp_path, *args)
    found = {item["id"]: item for item in json.loads(seen.stdout)["data"]["findings"]}
    assert tuple(found) == NODES
    assert (seen.returncode, found["nodes.versions"]["status"]) == (1, "fail")
    assert found["nodes.versions"]["summary"] == "There is no working environment on localhost."
    assert {item["status"] for name, item in found.items() if name != "nodes.versions"} <= {"ok", "skipped"}
    assert list((tmp_path / "ws").iterdir()) == []
