"""The nodes of a job: Slurm's short form, SGE's files, ports, hostfiles, ssh settings that real ssh reads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UcllmError
from pipeline.launch import nodes
from pipeline.launch.cluster import Cluster, load

LOCAL = Cluster(name="local")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a[1-3,07-09],b5", ["a1", "a2", "a3", "a07", "a08", "a09", "b5"]),
        ("mlmini-g2-ghpc-0", ["mlmini-g2-ghpc-0"]),
        ("mlmini-g2-ghpc-[0-1]", ["mlmini-g2-ghpc-0", "mlmini-g2-ghpc-1"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("n[1-2]-ib,m", ["n1-ib", "n2-ib", "m"]),
        ("a,a[1]", ["a", "a1"]),
    ],
)
def test_slurms_short_form_of_names(text: str, names: list[str]) -> None:
    assert list(nodes.expand(text)) == names


@pytest.mark.parametrize(
    "text", ["", "a[", "a]", "a[1-", "a[]", "a[3-1]", "a[1--2]", "a[x]", "a,,b", "a b", "n[1-9999999999]"]
)
def test_what_is_no_list_of_nodes_is_refused(text: str) -> None:
    with pytest.raises(UcllmError) as caught:
        nodes.expand(text)
    assert caught.value.problems[0].code == "launch.node-list"


_PREFIX = st.from_regex(r"[a-z][a-z0-9-]{0,4}[a-z]", fullmatch=True)


@given(st.lists(st.tuples(_PREFIX, st.integers(1, 4), st.integers(0, 50), st.integers(0, 5)), min_size=1, max_size=4))
def test_a_range_is_its_numbers_in_order(groups: list[tuple[str, int, int, int]]) -> None:
    text, names = [], []
    for prefix, width, low, more in groups:
        text.append(f"{prefix}[{low:0{width}}-{low + more:0{width}}]")
        names += [f"{prefix}{number:0{width}}" for number in range(low, low + more + 1)]
    assert list(nodes.expand(",".join(text))) == names


def test_the_nodes_of_a_slurm_job() -> None:
    job = {"SLURM_JOB_ID": "424242", "SLURM_JOB_NODELIST": "n[1-3]"}
    assert nodes.inside(job)
    assert nodes.hosts(LOCAL, 3, job) == ("n1", "n2", "n3")
    assert nodes.hosts(LOCAL, 2, job) == ("n1", "n2")
    with pytest.raises(UcllmError) as caught:
        nodes.hosts(LOCAL, 4, job)
    problem = caught.value.problems[0]
    assert problem.code == "launch.too-few-nodes"
    assert "n1, n2, n3" in problem.what
    assert "--nodes 3" in problem.hint


def test_the_nodes_of_an_sge_job(tmp_path: Path) -> None:
    pe, plain = tmp_path / "pe", tmp_path / "list"
    pe.write_text("g1 8 gpu@g1 UNDEFINED\ng2 8 gpu@g2 UNDEFINED\n", encoding="utf-8")
    plain.write_text("g1\ng2\n", encoding="utf-8")
    for variable, path in (("PE_HOSTFILE", pe), ("SGE_JOB_HOSTLIST", plain)):
        job = {"JOB_ID": "424242", variable: str(path)}
        assert nodes.hosts(LOCAL, 2, job) == ("g1", "g2")
    with pytest.raises(UcllmError) as caught:
        nodes.hosts(LOCAL, 2, {"PE_HOSTFILE": str(tmp_path / "gone")})
    assert "gone" in caught.value.problems[0].what


def test_outside_a_job_nodes_are_placeholders_or_the_users_own() -> None:
    assert nodes.hosts(LOCAL, 2, {}) == ("node-0", "node-1")
    own = Cluster(name="lab", hosts=("a", "b"), nodes=2)
    assert nodes.hosts(own, 1, {}) == ("a",)
    with pytest.raises(UcllmError):
        nodes.hosts(own, 3, {})


@pytest.mark.parametrize(
    ("environ", "job", "port"),
    [
        ({"SLURM_JOB_ID": "424242"}, "424242", 34242),
        ({"JOB_ID": "424242"}, "424242", 34242),
        ({"PBS_JOBID": "77.pbs01"}, "77", 10077),
        ({"SLURM_JOB_ID": "150001"}, "150001", 10001),
        ({"JOB_ID": "undefined"}, "", 29500),
        ({}, "", 29500),
    ],
)
def test_the_port_comes_from_the_job_as_in_the_published_scripts(environ: dict[str, str], job: str, port: int) -> None:
    assert nodes.job_id(environ) == job
    assert nodes.master_port(job) == port
    assert nodes.inside(environ) is bool(job)


def test_a_hostfile_is_read_as_it_is_written() -> None:
    text = nodes.hostfile(("node-0", "node-1"), 8)
    assert text == "node-0 slots=8\nnode-1 slots=8\n"
    assert nodes.parse_hostfile(text) == (("node-0", 8), ("node-1", 8))
    assert nodes.parse_hostfile("# ours\n\n a\tslots=2  # two\n") == (("a", 2),)


def test_every_problem_of_a_hostfile_is_named_with_its_line() -> None:
    with pytest.raises(UcllmError) as caught:
        nodes.parse_hostfile("a slots=8\nb\nc slots=0\na slots=4\nd slots=8 max_slots=8\n", "my.hosts")
    said = [item.what for item in caught.value.problems]
    assert [line.split(":")[0] for line in said] == [f"my.hosts, line {number}" for number in (2, 3, 4, 5)]
    assert "line 1" in said[2]
    assert "b slots=8" in caught.value.problems[0].hint
    with pytest.raises(UcllmError):
        nodes.parse_hostfile("# nothing\n")


@pytest.mark.skipif(not shutil.which("ssh"), reason="there is no ssh")
def test_real_ssh_reads_the_settings(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    cluster = load("abci")
    (folder / "ssh_config").write_text(nodes.ssh_config(cluster, ("g1", "g2"), folder), encoding="utf-8")

    def settings(host: str) -> dict[str, str]:
        command = ["ssh", "-G", "-F", str(folder / "ssh_config"), host]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return dict(line.split(" ", 1) for line in out.splitlines() if " " in line)

    ours, other = settings("g2"), settings("elsewhere")
    assert (ours["port"], ours["batchmode"], ours["stricthostkeychecking"]) == ("2222", "yes", "accept-new")
    assert ours["userknownhostsfile"] == str(folder / "known_hosts")
    assert other["port"] == "22"


def test_an_ssh_user_is_named_only_where_the_cluster_names_one(tmp_path: Path) -> None:
    assert "User" not in nodes.ssh_config(LOCAL, ("a",), tmp_path).replace("UserKnownHostsFile", "")
    assert "    User me\n" in nodes.ssh_config(Cluster(name="lab", ssh_user="me"), ("a",), tmp_path)
