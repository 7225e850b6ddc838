"""What the user chose is kept: in the command that doctor prints, and by --skip. What is wrong is named."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bootstrap.conftest import Tiny
from tests.conftest import UCLLM, cli_environment


def _run(place: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**cli_environment(place), **variables}
    argv = [*UCLLM, "doctor", *args]
    return subprocess.run(argv, env=env, cwd=place, capture_output=True, text=True, timeout=120, check=False)


def _printed(text: str) -> str:
    """The command in the last line."""
    (command,) = re.findall(r"`(.*)`", text.splitlines()[-1])
    return str(command)


# The command that repairs.


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], ""),
        (["--workspace", "a b"], " --workspace 'a b'"),
        (["--profile", "cpu", "--strict"], " --profile cpu"),
        (["--only", "env.pip", "--only", "env.python"], " --only env.pip --only env.python"),
        (["--skip", "env.files", "--deep"], " --skip env.files --deep"),
        (["--smoke", "--only=env.python"], " --only env.python --smoke"),
    ],
)
def test_the_command_that_repairs_keeps_what_was_given(tmp_path: Path, given: list[str], kept: str) -> None:
    """A variable is still there when the command is pasted: it is not named."""
    variables = {"UCLLM_PROFILE": "cpu"}
    seen = _run(tmp_path, *given, **variables)
    assert seen.returncode == 1, seen.stderr
    assert seen.stdout.splitlines()[-1] == f"Repair with: `ucllm doctor --fix{kept}`"
    planned = _run(tmp_path, "--fix", *given, **variables)
    assert planned.stdout.splitlines()[-1] == f"Do it with: `ucllm doctor --fix{kept} --yes`"
    assert json.loads(_run(tmp_path, "--json", *given, **variables).stdout)["data"]["fix_command"] == (
        f"ucllm doctor --fix{kept}"
    )


def test_pasted_it_repairs_that_workspace_and_that_check_only(healthy: Tiny) -> None:
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    command = _printed(healthy("doctor", "--only", "env.packages", "--fix").out)
    words = shlex.split(command)
    assert words[:2] == ["ucllm", "doctor"]
    assert words[-3:] == ["--only", "env.packages", "--yes"]
    where = words.index("--workspace")
    assert words[where + 1] == str(healthy.workspace)
    fixed = healthy(*words[1:where], *words[where + 2 :])  # the fixture names the workspace itself
    assert fixed.code == 0, fixed.out + fixed.err
    assert healthy.doctor().code == 0


def test_another_machines_facts_are_not_repaired_here(healthy: Tiny) -> None:
    shutil.rmtree(healthy.env)
    file = healthy.root / "facts.json"
    assert "`ucllm doctor --fix" in healthy("doctor", "--save-facts", str(file)).out
    seen = healthy("doctor", "--facts", str(file))
    assert seen.code == 1
    assert "--fix" not in seen.out
    assert "fix_command" not in healthy.doctor("--facts", str(file)).json["data"]


# --skip.


def test_what_needs_a_skipped_check_that_fails_could_not_be_checked(tmp_path: Path) -> None:
    seen = _run(tmp_path, "--json", "--profile", "cpu", "--only", "env.pip", "--skip", "env.python")
    data = json.loads(seen.stdout)["data"]
    (finding,) = data["findings"]
    assert (finding["id"], finding["status"], seen.returncode) == ("env.pip", "unknown", 3)
    assert "env.python" in finding["summary"]
    assert finding["evidence"] == ["env.python: There is no Python environment yet."]
    assert [item["id"] for item in data["requirements"]] == ["env.pip"]
    # Further down, what waits for such a check waits for it as for any other.
    told = _run(tmp_path, "--json", "--profile", "cpu", "--skip", "env.python")
    found = {item["id"]: item for item in json.loads(told.stdout)["data"]["findings"]}
    assert found["env.packages"]["status"] == "unknown"
    assert (found["env.dependencies"]["status"], found["env.dependencies"]["blocked_by"]) == (
        "blocked",
        ["env.packages"],
    )
    text = _run(tmp_path, "--profile", "cpu", "--only", "env.pip", "--skip", "env.python").stdout
    assert "? env.pip" in text
    assert "first line" not in text


def test_a_skipped_check_that_is_fine_keeps_nothing_from_being_checked(healthy: Tiny) -> None:
    assert healthy.doctor("--skip", "env.python").statuses == {"env.packages": "ok"}


def test_a_skipped_check_is_not_repaired(healthy: Tiny) -> None:
    shutil.rmtree(healthy.env)
    for more in ([], ["--yes"]):
        seen = healthy.doctor("--skip", "env.python", "--fix", *more)
        assert (seen.code, seen.statuses) == (3, {"env.packages": "unknown"})
        assert seen.json["data"].get("plan", []) == []
    assert not healthy.env.exists()


@pytest.mark.parametrize("more", [[], ["--fix", "--yes"]])
def test_nothing_left_to_check_is_a_mistake(tmp_path: Path, more: list[str]) -> None:
    seen = _run(tmp_path, "--profile", "cpu", "--only", "env.pip", "--skip", "env.pip", *more)
    assert (seen.returncode, seen.stdout) == (2, "")
    assert "Nothing is left to check" in seen.stderr
    assert "hint:" in seen.stderr


# What is wrong, said as it is.


def test_without_git_checkouts_wait_for_git(tmp_path: Path) -> None:
    """And not for the network."""
    commands = tmp_path / "bin"
    commands.mkdir()
    args = ["--profile", "megatron-cpu", "--only", "source.megatron", "--fix", "--yes"]
    seen = _run(tmp_path, *args, PATH=str(commands))
    assert seen.returncode == 1
    assert "Not found: make, git." in seen.stdout
    assert "sudo apt-get install make git" in seen.stdout
    assert "waiting for it: source.megatron" in seen.stdout
    assert "network" not in seen.stdout + seen.stderr


def test_a_tmpdir_that_does_not_exist_is_one_finding(tmp_path: Path) -> None:
    gone = str(tmp_path / "not there")
    args = ["--json", "--profile", "cpu", "--skip", "env.python"]
    found = {item["id"]: item for item in json.loads(_run(tmp_path, *args, TMPDIR=gone).stdout)["data"]["findings"]}
    finding = found["machine.disk-tmp"]
    assert finding["summary"] == f"TMPDIR names a folder that does not exist: {gone}."
    assert f"mkdir -p '{gone}'" in finding["remedy"]["text"]
    assert finding["remedy"]["commands"][1].startswith("export TMPDIR=")
    assert "0.0 GB" not in str(finding)
    assert found["machine.tmp-exec"]["blocked_by"] == ["machine.disk-tmp"]
    assert [item["id"] for item in found.values() if item["status"] == "fail"] == ["machine.disk-tmp"]
    subprocess.run(shlex.split(finding["remedy"]["text"].split("`")[1]), check=True)
    told = _run(tmp_path, *args, "--only", "machine.tmp-exec", TMPDIR=gone)
    assert [item["status"] for item in json.loads(told.stdout)["data"]["findings"]] == ["ok"]


@pytest.mark.parametrize("below", ["", "/sub"])
def test_a_file_in_place_of_the_temporary_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    seen = _run(tmp_path, "--profile", "cpu", "--only", "machine.tmp-exec", TMPDIR=f"{tmp_path / 'file'}{below}")
    assert f"{tmp_path / 'file'} is not a folder" in seen.stdout
    assert "0.0 GB" not in seen.stdout


def test_a_file_in_the_way_of_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    args = ["--profile", "cpu", "--only", "machine.disk", "--workspace", "file/a/b"]
    seen = _run(tmp_path, *args)
    assert seen.returncode == 1
    assert f"{tmp_path}/file/a/b cannot be used: {tmp_path}/file is not a folder." in seen.stdout
    assert "remedy: Move it away, or choose another workspace with `--workspace DIR`." in seen.stdout
    assert "room" not in seen.stdout


@pytest.mark.parametrize("command", [("doctor",), ("setup",), ("train", "all")])
def test_an_unknown_profile_that_is_recorded_names_the_record_and_the_option(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    record = tmp_path / "ws" / ".ucllm" / "workspace.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"workspace_version": 1, "profile": "cpuu"}', encoding="utf-8")
    argv = [sys.executable, "-m", "bootstrap", *command, "--workspace", str(tmp_path / "ws")]
    env = cli_environment(tmp_path)
    seen = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert seen.returncode == 2
    assert f"There is no profile `cpuu`. {record} names it." in seen.stderr
    assert "`cpu`" in seen.stderr
    assert "--profile" in seen.stderr
    asked = subprocess.run([*argv, "--profile", "cpux"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert "cpux" in asked.stderr
    assert "workspace.json" not in asked.stderr
