"""Clusters: those that come with ucllm, the published names, a user's own file, and everything wrong with one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.errors import UcllmError
from pipeline.launch import cluster


def test_every_packaged_cluster_is_whole_and_says_where_its_values_come_from() -> None:
    assert cluster.names() == ["abci", "gcp-honban", "gcp-play", "local", "sakura"]
    for name in cluster.names():
        found = cluster.load(name)
        assert found.name == name
        assert found.description
        assert found.nodes == 1
        if found.scheduler != "none":
            assert found.partition
            assert found.gpus_per_node == 8
        if name == "local":
            continue
        assert found.gpu.startswith("NVIDIA")
        text = (cluster.CLUSTERS_DIR / f"{name}.toml").read_text(encoding="utf-8")
        assert re.match(r"# Sources?:", text)
        for line in text.splitlines():
            if re.match(r"(partition|gpus_per_node|cpus_per_node|time_limit|ssh_port) ", line):
                assert "#" in line, line


@pytest.mark.parametrize(
    ("published", "name"),
    [
        ("gcp_node-1_gpu", "gcp-play"),
        ("gcp_node-2_gpu", "gcp-play"),
        ("gcp_play_node-1_gpu-2", "gcp-play"),
        ("gcp_play_node-2_gpu-16", "gcp-play"),
        ("gcp", "gcp-play"),
        ("gcp_play", "gcp-play"),
        ("GCP-Play", "gcp-play"),
        ("gcp_honban", "gcp-honban"),
        ("gcp_honban_node-2_gpu-16", "gcp-honban"),
        ("abci_node-1_gpu-1", "abci"),
        ("sakrua", "sakura"),
        ("sakrua_node-1_gpu-8", "sakura"),
        ("local", "local"),
    ],
)
def test_the_published_scripts_names_are_understood(published: str, name: str) -> None:
    assert cluster.load(published).name == name


def test_processors_and_resources_for_part_of_a_node_are_those_of_the_guides() -> None:
    play, abci = cluster.load("gcp-play"), cluster.load("abci")
    assert [play.cpus(gpus) for gpus in (1, 2, 4, 8)] == [12, 12, 24, 48]
    assert abci.resource(1, 1) == "rt_AG.small"
    assert abci.resource(1, 8) == abci.resource(2, 1) == "rt_AF"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UcllmError) as caught:
        cluster.load("gcp-plya")
    assert caught.value.problems[0].code == "cluster.unknown"
    assert "gcp-play" in caught.value.problems[0].hint


def _write(folder: Path, text: str) -> str:
    path = folder / "lab.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_users_own_machines(tmp_path: Path) -> None:
    text = 'scheduler = "none"\nhosts = ["a", "b"]\nnodes = 2\nssh_port = 2022\nssh_user = "me"\n'
    found = cluster.load(_write(tmp_path, text + '[environment]\nNCCL_SOCKET_IFNAME = "ib0"\n'))
    assert (found.name, found.hosts, found.nodes, found.ssh_port) == ("lab", ("a", "b"), 2, 2022)
    assert dict(found.environment) == {"NCCL_SOCKET_IFNAME": "ib0"}


def test_everything_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    text = """
scheduler = "slrum"
launcher = "deepspeed"
partiton = "g2"
nodes = "two"
gpus_per_node = true
ssh_port = 0
time_limit = "6h"
modules = "cuda"
[environment]
WANDB_API_KEY = "x"
NUMBER = 1
"""
    with pytest.raises(UcllmError) as caught:
        cluster.load(_write(tmp_path, text))
    said = "\n".join(f"{item.message} {item.hint}" for item in caught.value.problems)
    for word in (
        "slurm",
        "partition",
        "`nodes`",
        "`gpus_per_node`",
        "ssh_port",
        "HH:MM:SS",
        "`modules`",
        "`environment`",
    ):
        assert word in said
    assert len(caught.value.problems) == 8


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('partition = "g2"', "partition"),
        ('scheduler = "sge"', "partition"),
        ("nodes = 2", "hosts"),
        ('hosts = ["a", "a"]', "twice"),
        ('scheduler = "slurm"\nhosts = ["a"]', "hosts"),
        ('launcher = "deepspeed-no-ssh"', "srun"),
        ('modules_from = "/etc/profile"', "modules"),
        ("minimum_cpus = 3", "minimum_cpus"),
        ('[environment]\nHF_TOKEN = "x"', "secret"),
        ('[environment]\n"A B" = "x"', "A B"),
        ('name = "a/b"', "name"),
        ('scheduler = "slurm"\nsubmit_options = ["--mem=1\\nrm -r /"]', "one line"),
    ],
)
def test_contradictions_are_found(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(UcllmError) as caught:
        cluster.load(_write(tmp_path, text))
    assert [word in item.message for item in caught.value.problems] == [True]
    assert "lab.toml" in caught.value.problems[0].message


def test_secrets_are_known_by_their_names() -> None:
    secret = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "my_password")
    assert [name for name in (*secret, "TOKENIZERS_PARALLELISM", "NCCL_SOCKET_IFNAME") if cluster.is_secret(name)] == [
        *secret
    ]


def test_a_file_that_is_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(UcllmError):
        cluster.load(str(tmp_path / "none.toml"))
    with pytest.raises(UcllmError):
        cluster.load(_write(tmp_path, "scheduler = slurm"))
