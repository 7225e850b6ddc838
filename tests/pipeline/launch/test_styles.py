"""What stands in front of a training script. Where a launcher is needed, a small stand-in of it runs the words."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UcllmError
from pipeline.launch import Machines, nodes, styles
from pipeline.launch.cluster import Cluster, load

SCRIPT, FLAGS = "/w/pretrain_gpt.py", ["--lr", "6.0e-4", "--prompt", "### Human:"]


def machines(
    cluster: Cluster,
    count: int = 2,
    slots: int = 8,
    *,
    device: str = "cuda",
    compat: str = "",
    job_id: str = "",
    python: str = "/w/.venv/bin/python",
) -> Machines:
    hosts = tuple(f"node-{index}" for index in range(count))
    place = (Path("/w"), Path(python), ".so")
    return Machines(cluster, hosts, slots, device, 34242, *place, job_id=job_id, compat=compat)


def _slurm(launcher: str) -> Cluster:
    return dataclasses.replace(load("gcp-play"), launcher=launcher)


def test_one_node_is_started_without_ssh_and_with_the_gpus_that_the_job_was_given() -> None:
    found = styles.wrap(machines(load("gcp-play"), 1, 2), SCRIPT, FLAGS)
    start = ("/w/.venv/bin/python", "-m", "deepspeed.launcher.runner")
    assert found.argv == (*start, "--master_port", "34242", SCRIPT, *FLAGS)
    assert not found.files
    assert styles.wrap(machines(load("gcp-play"), 1, 2), SCRIPT, FLAGS, gpus_here=2) == found
    fewer = styles.wrap(machines(load("gcp-play"), 1, 1), SCRIPT, FLAGS, gpus_here=2)
    assert fewer.argv[5:7] == ("--num_gpus", "1")


def test_the_published_launches_have_no_words_of_ours() -> None:
    for compat, port in (("v0.3", ()), ("v0.71", ("--master_port", "34242"))):
        one = styles.wrap(machines(load("gcp-play"), 1, 1, compat=compat), SCRIPT, FLAGS, gpus_here=2)
        assert one.argv == ("deepspeed", *port, SCRIPT, *FLAGS)
        two = styles.wrap(machines(load("abci"), compat=compat), SCRIPT, FLAGS, folder=Path("/r/launch"))
        assert two.argv == ("deepspeed", *port, "--hostfile", "/r/launch/hostfile", SCRIPT, *FLAGS)
        assert two.files["hostfile"] == "node-0 slots=8\nnode-1 slots=8\n"


def test_the_published_launches_are_those_that_were_recorded(shared: Path) -> None:
    seen = 0
    for record in json.loads((shared / "launches" / "examples.json").read_text(encoding="utf-8")):
        argv = record["argv"]
        script = next(index for index, word in enumerate(argv) if word.endswith(".py"))
        if argv[0] != "deepspeed":
            continue
        cluster = load(record["script"].split("/")[1])
        given = machines(cluster, record["nodes"], record["gpus_per_node"], compat=record["upstream"])
        found = styles.wrap(given, SCRIPT, FLAGS)
        ours = [Path(word).name.partition("_jobid")[0] for word in found.argv[: found.argv.index(SCRIPT)]]
        assert ours == [Path(word).name.partition("_jobid")[0] for word in argv[:script]]
        assert list(record["hostfile"].values()) == ([found.files["hostfile"]] if found.files else [])
        seen += 1
    assert seen


def test_over_ssh_everything_that_deepspeed_needs_is_in_the_runs_own_files() -> None:
    cluster = dataclasses.replace(load("abci"), environment={"NCCL_SOCKET_IFNAME": "ib0"})
    env = {"MAKEFLAGS": "LIBEXT=.so", "WANDB_API_KEY": "hidden"}
    found = styles.wrap(machines(cluster), SCRIPT, FLAGS, env=env, folder=Path("/r/launch"))
    ours = ("--hostfile", "/r/launch/hostfile", "--master_addr", "node-0", "--no_ssh_check")
    assert found.argv[3:] == ("--master_port", "34242", *ours, SCRIPT, *FLAGS)
    assert found.env["PDSH_SSH_ARGS_APPEND"] == "-F /r/launch/ssh_config"
    assert found.env["DS_ENV_FILE"] == "/r/launch/deepspeed_env"
    assert found.files["deepspeed_env"] == "MAKEFLAGS=LIBEXT=.so\nNCCL_SOCKET_IFNAME=ib0\n"
    assert nodes.parse_hostfile(found.files["hostfile"]) == (("node-0", 8), ("node-1", 8))
    assert "Port 2222" in found.files["ssh_config"]
    assert "hidden" not in repr(found)


def test_a_published_launch_over_ssh_finds_the_runs_settings_by_an_ssh_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "launch"
    found = styles.wrap(machines(load("abci"), compat="v0.71"), SCRIPT, FLAGS, folder=folder)
    for name, text in ((styles.SSH, found.files[styles.SSH]), ("real/ssh", '#!/bin/sh\nprintf "%s|" "$@"\n')):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    env = {"PATH": f"{folder / 'bin'}:{folder / 'real'}:/usr/bin:/bin"}
    done = subprocess.run(["ssh", "node-0", "hostname -I"], env=env, capture_output=True, text=True, timeout=30)
    assert done.stdout == f"-F|{folder / 'ssh_config'}|node-0|hostname -I|"


def test_srun_starts_each_node_with_its_own_number(tmp_path: Path) -> None:
    given = machines(_slurm("deepspeed-no-ssh"), python=sys.executable, job_id="424242")
    found = styles.wrap(given, SCRIPT, [*FLAGS, "--odd", "a \"b' $c"])
    assert found.argv[0] == "srun"
    assert {"--nodes=2", "--ntasks-per-node=1", "--nodelist=node-0,node-1"} <= set(found.argv)
    assert not found.files
    # srun's part, for the second node, with the launcher replaced by a module that prints its words.
    package = tmp_path / "deepspeed" / "launcher"
    package.mkdir(parents=True)
    (package / "launch.py").write_text("import json, sys; print(json.dumps(sys.argv[1:]))", encoding="utf-8")
    words = found.argv[found.argv.index("sh") :]
    env = {"SLURM_NODEID": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True, timeout=60)
    rank, world, *rest = json.loads(done.stdout)
    assert rank == "--node_rank=1"
    decoded = json.loads(base64.urlsafe_b64decode(world.partition("=")[2]))
    assert decoded == {"node-0": list(range(8)), "node-1": list(range(8))}
    assert rest == ["--master_addr", "node-0", "--master_port", "34242", SCRIPT, *FLAGS, "--odd", "a \"b' $c"]


@pytest.mark.parametrize("launcher", ["deepspeed", "deepspeed-no-ssh", "torchrun"])
def test_one_nodes_part_can_be_started_by_hand(launcher: str) -> None:
    found = styles.wrap(machines(_slurm(launcher)), SCRIPT, FLAGS, node_rank=1)
    assert found.argv[0] == "/w/.venv/bin/python"
    assert "--node_rank=1" in found.argv
    assert found.argv[-5:] == (SCRIPT, *FLAGS)


def test_the_commands_that_a_launch_needs() -> None:
    assert styles.needs(machines(load("gcp-play"), 1)) == ()
    assert styles.needs(machines(load("gcp-play"))) == ("pdsh", "ssh")
    assert styles.needs(machines(_slurm("deepspeed-no-ssh"))) == styles.needs(machines(_slurm("torchrun"))) == ("srun",)
    assert styles.needs(machines(_slurm("torchrun"), compat="v0.71")) == ("pdsh", "ssh")


def test_torchrun_on_a_cpu_and_with_a_module_of_ours() -> None:
    found = styles.wrap(machines(load("local"), 1, 2, device="cpu"), SCRIPT, FLAGS, interpreter_module="pipeline.x")
    launcher = ("/w/.venv/bin/python", "-u", "-m", "torch.distributed.run", "--node_rank=0", "--nnodes", "1")
    meet = ("--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port", "34242")
    assert found.argv == (*launcher, *meet, "--module", "pipeline.x", SCRIPT, *FLAGS)


def test_torchrun_cannot_start_nodes_without_slurm() -> None:
    cluster = Cluster(name="lab", launcher="torchrun", hosts=("a", "b"))
    with pytest.raises(UcllmError) as caught:
        styles.wrap(machines(cluster), SCRIPT, FLAGS)
    assert "ssh" in caught.value.problems[0].hint


def test_what_deepspeed_would_mangle_is_refused_all_at_once() -> None:
    given = machines(load("gcp-play"), python="/my work/python")
    with pytest.raises(UcllmError) as caught:
        styles.wrap(given, "/my work/x.py", ["--a", "$HOME", "--b c"], env={"V": "a b"}, folder=Path("/my work"))
    said = " ".join(item.what for item in caught.value.problems)
    for word in ("$HOME", "--b c", "/my work/x.py", "/my work/python", "variable V"):
        assert word in said
    assert len(caught.value.problems) == 6
    # One node has no other shell: blanks and dollars arrive there, quotes do not.
    styles.wrap(machines(load("gcp-play"), 1), "/my work/x.py", ["--a", "$HOME x"])
    with pytest.raises(UcllmError):
        styles.wrap(machines(load("gcp-play"), 1), SCRIPT, ["--a", 'say "x"'])
