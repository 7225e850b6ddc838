"""Nodes that this machine cannot be, in composed facts: each fault gives its own finding, and no other fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from bootstrap import facts as f
from bootstrap import profiles, requirements, runner
from bootstrap.facts.collect import NODES_TIMEOUTS_S
from bootstrap.findings import Finding
from bootstrap.profiles import Profile
from bootstrap.requirements import NODES
from tests.faults.synthetic import WORKSPACE, changed, l4_node

GB = 10**9
PROFILE = profiles.load("gcp-2024.02")
A100 = f.Gpu("NVIDIA A100-SXM4-40GB", "8.0", 42 * GB, 41 * GB)


def _healthy() -> f.Facts:
    """Three L4 nodes with one GPU each, as :func:`tests.faults.synthetic.l4_node` has it."""
    here = l4_node(PROFILE)
    node = f.NodeFacts(
        "a",
        env="ready",
        versions={"ucllm": "0.1.0", "Python": "3.9.18", "torch": "2.2.0", "CUDA": "11.8", "Megatron-DeepSpeed": "c0"},
        gpu=here.gpu,
        network=dataclasses.replace(here.network, port=0, port_free=None),
        disk=f.Disk(WORKSPACE, writable=True, kind="nfs4"),
        shared=True,
    )
    first = dataclasses.replace(node, network=here.network)
    nodes = (first, dataclasses.replace(node, host="b"), dataclasses.replace(node, host="c"))
    job = f.NodesFacts(nodes, "ssh", 29500, "a", try_command="ssh HOST -- true", program="/opt/ucllm/bin/python")
    return dataclasses.replace(here, nodes=job, collected=(*here.collected, *NODES_TIMEOUTS_S))


def _diagnose(facts: f.Facts, profile: Profile = PROFILE) -> dict[str, Finding]:
    return {item.id: item for item in runner.diagnose(profile, facts, requirements.load(NODES))}


def _variables(**values: str) -> Any:
    return lambda before: {**before, **values}


def _on(node: int, path: str) -> str:
    return f"nodes.nodes.{node}.{path}"


#: The finding, its status, words of its summary or evidence, and what is changed in the healthy facts.
FAULTS: Mapping[str, tuple[str, str, str, Mapping[str, Any]]] = {
    "a busy GPU": (
        "nodes.gpus", "fail", "b: GPU 0: process 4711 (python train.py)",
        {_on(1, "gpu.devices.0.processes"): ("4711 (python train.py)",)},
    ),
    "a GPU that something unseen fills": (
        "nodes.gpus", "fail", "c: GPU 0: 20.2 GB in use", {_on(2, "gpu.devices.0.memory_free"): 4 * GB},
    ),
    "more slots than GPUs": ("nodes.gpus", "fail", "b: 1 GPUs, slots=8", {_on(1, "slots"): 8}),
    "no GPU": ("nodes.gpus", "fail", "c: 0 GPUs, slots=1", {_on(2, "gpu.devices"): ()}),
    "GPUs of two kinds": ("nodes.gpus", "warn", "A100", {_on(1, "gpu.devices"): (A100,)}),
    "memory that is not told": ("nodes.gpus", "unknown", "b", {_on(1, "gpu.devices.0.memory_free"): None}),
    "no driver": ("nodes.driver", "fail", "c: There is no NVIDIA driver", {_on(2, "gpu"): f.GpuFacts()}),
    "an old driver": ("nodes.driver", "fail", "on b", {_on(1, "gpu.driver"): "440.33.01"}),
    "another driver": (
        "nodes.driver", "warn", "driver: 535.129.03 on a, c; 550.54.15 on b", {_on(1, "gpu.driver"): "550.54.15"},
    ),
    "a driver that was not asked in time": (
        "nodes.driver", "unknown", "b: gpu: no answer in 10 s", {_on(1, "errors"): {"gpu": "no answer in 10 s"}},
    ),
    "another commit": (
        "nodes.versions", "fail", "Megatron-DeepSpeed: c0 on a, b; d1 on c",
        {_on(2, "versions.Megatron-DeepSpeed"): "d1"},
    ),
    "the first node is the odd one": (
        "nodes.versions", "fail", "a differ from the rest: torch", {_on(0, "versions.torch"): "2.1.0"},
    ),
    "a package that one lacks": (
        "nodes.versions", "fail", "apex: none on a, b; 0.1 on c", {_on(2, "versions.apex"): "0.1"},
    ),
    "no environment": ("nodes.versions", "fail", "b: absent", {_on(1, "env"): "absent"}),
    "checkouts that were not read in time": (
        "nodes.versions", "unknown", "c: sources: late", {_on(2, "errors"): {"sources": "late"}},
    ),
    "mounted for reading": ("nodes.workspace", "fail", "cannot be written on b", {_on(1, "disk.writable"): False}),
    "no interface up": (
        "nodes.interfaces", "fail", "b", {_on(1, "network.interfaces"): {"lo": "up", "docker0": "up", "ens4": "down"}},
    ),
    "interfaces of other names": (
        "nodes.interfaces", "warn", "the same name", {_on(1, "network.interfaces"): {"lo": "up", "enp3s0": "up"}},
    ),
    "the interface that is asked for is on two nodes only": (
        "nodes.interfaces", "fail", "NCCL_SOCKET_IFNAME=ens4",
        {"machine.variables": _variables(NCCL_SOCKET_IFNAME="ens4"), _on(2, "network.interfaces"): {"eth0": "up"}},
    ),
    "interfaces that are not told": ("nodes.interfaces", "unknown", "c: ?", {_on(2, "network.interfaces"): {}}),
    "a port that is taken": (
        "nodes.port", "fail", "held by: 7 (torchrun)",
        {_on(0, "network.port_free"): False, _on(0, "network.port_owner"): "7 (torchrun)"},
    ),
    "a port that nobody can try": ("nodes.port", "unknown", "29500", {_on(0, "network.port_free"): None}),
    "a firewall": ("nodes.port", "fail", "c: no answer in 20 s", {_on(2, "met"): "no answer in 20 s"}),
}  # fmt: skip


def test_healthy_nodes() -> None:
    found = _diagnose(_healthy())
    assert {item.status for item in found.values()} == {"ok"}, found
    assert found["nodes.gpus"].summary == "3 free GPUs on 3 nodes"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_finding_that_says_where(name: str) -> None:
    identity, status, words, changes = FAULTS[name]
    facts = _healthy()
    for path, new in changes.items():
        facts = changed(facts, path, new)
    found = _diagnose(facts)
    finding = found[identity]
    assert finding.status == status, finding
    assert words in "\n".join((finding.summary, *finding.evidence)), finding
    if status == "fail":
        assert finding.remedy is not None
    rest = {item.id: item.status for item in found.values() if item.id != identity and item.status != "ok"}
    assert set(rest.values()) <= {"blocked"}, rest
    assert runner.exit_code(list(found.values())) == {"fail": 1, "unknown": 3, "warn": 0}[status]


def test_only_the_gpus_that_the_job_takes_must_be_free() -> None:
    gpu = l4_node(PROFILE).gpu.devices[0]
    busy = dataclasses.replace(gpu, processes=("9 (python)",))
    facts = changed(_healthy(), _on(1, "gpu.devices"), (gpu, busy))
    assert _diagnose(facts)["nodes.gpus"].status == "ok"
    assert _diagnose(changed(facts, _on(1, "slots"), 2))["nodes.gpus"].status == "fail"


def test_names_that_are_asked_for_may_begin_several_interfaces() -> None:
    facts = changed(_healthy(), "machine.variables", _variables(NCCL_SOCKET_IFNAME="ens"))
    facts = changed(facts, _on(1, "network.interfaces"), {"ens5": "up"})
    assert _diagnose(facts)["nodes.interfaces"].status == "ok"


def test_many_nodes_are_counted_and_not_all_listed() -> None:
    facts = _healthy()
    far = dataclasses.replace(facts.nodes.nodes[1], state="silent", error="no answer in 80 s")
    many = tuple(dataclasses.replace(far, host=f"n{number}") for number in range(20))
    finding = _diagnose(changed(facts, "nodes.nodes", (facts.nodes.nodes[0], *many)))["nodes.reachable"]
    assert finding.summary == "No answer from n0, n1, n2, n3, n4, n5, n6, n7 and 12 more."


def test_no_nodes_are_unknown() -> None:
    assert _diagnose(changed(_healthy(), "nodes", f.NodesFacts()))["nodes.reachable"].status == "unknown"


def test_without_a_gpu_in_the_profile_none_is_needed() -> None:
    facts = _healthy()
    for node in range(3):
        facts = changed(facts, _on(node, "gpu"), f.GpuFacts())
    found = _diagnose(facts, profiles.load("cpu"))
    assert (found["nodes.driver"].status, found["nodes.gpus"].status) == ("skipped", "skipped")
