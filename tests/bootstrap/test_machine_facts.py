"""The collectors of the machine and its network: on this machine, and on made-up folders."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap.facts import Disk, cgroup, machine, network
from bootstrap.facts.collect import Request, collect
from bootstrap.findings import FAIL, OK, UNKNOWN, WARN
from bootstrap.profiles import load
from bootstrap.workspace import Workspace
from tests.bootstrap.test_machine import HEALTHY, check, of
from tests.conftest import REPOSITORY


def test_this_machine_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("NCCL_SECRET_KEY", "hidden")
    facts = collect(load("cpu"), Workspace(tmp_path / "not" / "yet"), ("machine", "network"))
    assert facts.errors == {}
    seen = facts.machine
    assert seen.errors == {}
    assert seen.libc.startswith(("glibc ", "musl"))
    assert seen.memory_total is not None
    assert seen.memory_available is not None
    assert 0 < seen.memory_available <= seen.memory_total
    assert set(seen.disks) == {"workspace", "tmp", "home", "shm"}
    assert seen.disks["tmp"].path == str(tmp_path)
    assert seen.disks["workspace"].writable
    assert all(item.kind and item.free is not None and item.noexec is not None for item in seen.disks.values())
    assert {"open_files", "hard_open_files", "processes", "memlock", "pids"} <= seen.limits.keys()
    assert "hidden" not in json.dumps(facts.as_json())
    assert facts.network.interfaces["lo"] == "up"
    assert facts.network.adapters is not None
    assert check("interfaces", facts).status == OK


def test_a_folder_for_temporary_files_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    facts = collect(load("cpu"), Workspace(tmp_path), ("machine",))
    finding = check("tmp-exec", facts)
    assert finding.status == FAIL
    assert "there is no such folder" in finding.evidence
    (tmp_path / "gone").mkdir()
    assert check("tmp-exec", collect(load("cpu"), Workspace(tmp_path), ("machine",))).status == OK


def test_a_workspace_below_a_file_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o777)
    facts = collect(load("cpu"), Workspace(tmp_path / "file"), ("machine",))
    assert check("disk", facts).status == FAIL


def test_a_disk_that_hangs_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Disk] = machine.disk

    def hanging(path: Path, errors: dict[str, str], mounts: str, *, must_exist: bool) -> Disk:
        if path == tmp_path:
            time.sleep(1)
        return real(path, errors, mounts, must_exist=must_exist)

    monkeypatch.setattr(machine, "disk", hanging)
    monkeypatch.setattr(machine, "DISK_TIMEOUT_S", 0.2)
    facts = collect(load("cpu"), Workspace(tmp_path), ("machine",))
    assert check("disk", facts).status == UNKNOWN
    assert facts.machine.disks["shm"].free is not None
    assert "no answer" in facts.machine.errors[f"disk {tmp_path}"]


def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    folder = os.path.realpath(tmp_path)
    mounts = f"r / ext4 rw 0 0\na {folder.replace('-', chr(92) + '055')} xfs rw 0 0\nb {folder}x nfs4 rw 0 0\n"
    assert machine.disk(tmp_path / "new", {}, mounts, must_exist=False).kind == "xfs"
    assert machine.disk(tmp_path, {}, mounts + f"c {folder} tmpfs rw 0 0\n", must_exist=True).kind == "tmpfs"
    assert machine.disk(Path("/"), {}, mounts, must_exist=True).kind == "ext4"


def _encoding(values: Mapping[str, str]) -> str:
    """What the collector says in a fresh process with only these variables of the locale."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    code = (
        "import locale, sys\n"
        "from bootstrap.facts.collect import collect\nfrom bootstrap.profiles import load\n"
        "from bootstrap.workspace import Workspace\nfrom pathlib import Path\n"
        "facts = collect(load('cpu'), Workspace(Path('/')), ('machine',))\n"
        "print(facts.machine.encoding, sorted(facts.machine.variables))"
    )
    env = {**kept, "PYTHONPATH": str(REPOSITORY), **values}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()[0].lower()


def test_the_encoding_is_what_python_makes_of_the_variables() -> None:
    for harmless in ({}, {"LC_ALL": "C"}, {"LANG": "C.UTF-8"}, {"LANG": "xx_YY.eucJP"}):
        assert _encoding(harmless) == "utf-8", harmless
    bare = _encoding({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert check("locale", of(encoding=bare)).status == FAIL


def _write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


def test_control_groups_of_version_2_limit_memory_at_every_level(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "job/memory.max": "8000\n",
            "job/memory.current": "5000\n",
            "job/memory.stat": "anon 2000\ninactive_file 2000\nactive_file 1000\n",
            "job/step/memory.max": "max\n",
            "job/step/pids.max": "max\n",
            "job/pids.max": "100\n",
        },
    )
    assert cgroup.memory(("0::/job/step",), root) == [(8000, 2000)]
    assert cgroup.processes(("0::/job/step",), root) == 100
    assert cgroup.processes((), root) == -1


def test_control_groups_of_version_1_and_a_container_that_sees_the_hosts_paths(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "memory/memory.limit_in_bytes": "4000\n",
            "memory/memory.usage_in_bytes": "3500\n",
            "memory/memory.stat": "total_inactive_file 500\ntotal_active_file 0\n",
        },
    )
    assert cgroup.memory(("5:cpu,memory:/docker/abc", "0::/"), root) == [(4000, 3000)]
    assert cgroup.own(tmp_path / "none") == ()


def test_memory_is_what_the_control_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"meminfo": "MemTotal: 16 kB\nMemAvailable: 12 kB\n", "g/memory.max": "8192", "g/memory.current": "2048"}
    root = _write(tmp_path, files)
    monkeypatch.setattr(cgroup, "own", lambda: ("0::/g",))
    assert machine.memory({}, meminfo=root / "meminfo", groups=root) == (8192, 6144)
    (root / "g" / "memory.max").write_text("9223372036854771712", encoding="ascii")
    assert machine.memory({}, meminfo=root / "meminfo", groups=root) == (16384, 12288)
    errors: dict[str, str] = {}
    assert machine.memory(errors, meminfo=root / "none") == (None, None)
    assert "none" in errors["memory"]


def test_the_scheduler_is_that_of_the_commands_else_of_the_job(tmp_path: Path) -> None:
    def there(*commands: str) -> str:
        folder = tmp_path / "-".join(commands or ("nothing",))
        folder.mkdir(exist_ok=True)
        for command in commands:
            (folder / command).touch(0o755)
        return str(folder)

    assert machine.scheduler({"PATH": there()}) == ""
    assert machine.scheduler({"PATH": there(), "PBS_JOBID": "1"}) == "pbs"
    assert machine.scheduler({"PATH": there("sinfo"), "PE_HOSTFILE": "/left/over"}) == "slurm"
    assert machine.scheduler({"PATH": there("qconf")}) == "sge"
    # Slurm comes with commands under PBS's names.
    assert machine.scheduler({"PATH": there("sinfo", "pbsnodes")}) == "slurm"
    assert machine.scheduler({"PATH": there("sinfo", "pbsnodes"), "PBS_JOBID": "1"}) == "pbs"


def test_variables_are_an_allow_list_without_secrets_and_names() -> None:
    private = {"NCCL_API_KEY": "x", "SLURM_JWT_TOKEN": "x", "SLURM_JOB_USER": "me", "PBS_O_LOGNAME": "me", "HOME": "/x"}
    wanted = {"NCCL_DEBUG": "INFO", "SLURM_JOB_ID": "1", "MAX_JOBS": "2", "GLOO_SOCKET_IFNAME": "eth0"}
    assert machine.variables({**private, **wanted}) == wanted


def test_the_kind_of_container(tmp_path: Path) -> None:
    assert machine.container({}, tmp_path) == ""
    (tmp_path / ".dockerenv").touch()
    assert machine.container({}, tmp_path) == "docker"
    _write(tmp_path, {"run/.containerenv": ""})
    assert machine.container({}, tmp_path) == "podman"
    assert machine.container({"APPTAINER_CONTAINER": "/x.sif"}, tmp_path) == "apptainer"


def test_interfaces_and_adapters_of_a_made_up_machine(tmp_path: Path) -> None:
    files = {"net/eth0/operstate": "up\n", "net/ib0/operstate": "down\n", "net/lo/operstate": "unknown\n"}
    root = _write(tmp_path, {**files, "net/bonding_masters": "", "infiniband/mlx5_0/node_type": "1"})
    assert network.interfaces(root) == {"eth0": "up", "ib0": "down", "lo": "up"}
    assert network.adapters(root) == ("mlx5_0",)
    assert network.interfaces(tmp_path / "none") == {}
    assert network.adapters(tmp_path / "net") == ()
    assert network.adapters(tmp_path / "none") is None


def test_a_port_that_is_taken_is_told_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        facts = network.collect(Request(load("cpu"), Workspace(tmp_path)))
        assert (facts.port, facts.port_free) == (port, False)
        assert facts.port_owner.startswith(f"{os.getpid()} (")
        assert check("port", replace(HEALTHY, network=facts)).status == WARN
    facts = network.collect(Request(load("cpu"), Workspace(tmp_path)))
    assert (facts.port_free, facts.port_owner) == (True, "")
    monkeypatch.setenv("MASTER_PORT", "nonsense")
    assert network.collect(Request(load("cpu"), Workspace(tmp_path))).port == load("cpu").machine.port


def test_a_program_is_named_without_what_may_be_secret() -> None:
    assert network.program(["/usr/bin/python3", "-u", "/x/train.py", "--token", "s"]) == "python3 train.py"
    assert network.program(["python", "-m", "torch.distributed.run", "--x"]) == "python -m torch.distributed.run"
    assert network.program(["/bin/bash", "-c", "export TOKEN=s"]) == "bash"
    assert network.program(["curl", "s"]) == "curl"
    assert network.program(["worker: with a title"]) == "worker:"
    assert network.program([]) == "?"
