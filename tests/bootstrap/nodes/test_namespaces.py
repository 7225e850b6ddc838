"""The master port between two machines that the network really keeps apart: two network namespaces and a firewall."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from bootstrap import nodes as api
from bootstrap import profiles
from bootstrap.facts import nodes as collector
from bootstrap.findings import Finding
from bootstrap.workspace import Workspace
from tests.bootstrap.nodes.conftest import Nodes

PORT = 29500
#: For the tests of networks (RFC 5737).
ADDRESSES = ("192.0.2.1", "192.0.2.2")


@dataclass(frozen=True)
class Pair:
    """Two namespaces with one cable between them."""

    names: tuple[str, str]

    def ip(self, node: int, *words: str) -> None:
        ip("-n", self.names[node], *words)


Look = Callable[[], Mapping[str, Finding]]


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def _wait_for_link(name: str) -> None:
    """The kernel says that a cable is in only some time after it was told so, longer on a busy machine."""
    end = time.monotonic() + 20
    while "state UP" not in ip("-n", name, "link", "show", "net0") and time.monotonic() < end:
        time.sleep(0.05)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair((f"ucllm-a-{os.getpid()}", f"ucllm-b-{os.getpid()}"))
    try:
        for name in made.names:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "net0",
            "netns",
            made.names[0],
            "type",
            "veth",
            "peer",
            "name",
            "net0",
            "netns",
            made.names[1],
        )
        for node, address in enumerate(ADDRESSES):
            made.ip(node, "addr", "add", f"{address}/24", "dev", "net0")
            for link in ("lo", "net0"):
                made.ip(node, "link", "set", link, "up")
        for name in made.names:
            _wait_for_link(name)
        yield made
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', '') or error}")
    finally:
        for name in made.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.fixture
def look(nodes: Nodes, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Look:
    """The findings of the pair, each reached by its address, over an ssh that enters the namespace."""
    cases = "\n".join(f'    {a}) exec ip netns exec {n} sh -c "$*";;' for a, n in zip(ADDRESSES, pair.names))
    path = nodes.stub / "ssh"
    path.write_text(path.read_text(encoding="utf-8").replace('case "$host" in', f'case "$host" in\n{cases}'))
    for name, value in nodes.tiny.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(collector, "MEETING_S", 6.0)
    profile, workspace = profiles.load(str(nodes.tiny.lock)), Workspace(nodes.tiny.workspace)

    def findings() -> dict[str, Finding]:
        return {item.id: item for item in api.findings([(a, 1) for a in ADDRESSES], PORT, workspace, profile)}

    return findings


def test_two_machines_meet(look: Look) -> None:
    found = look()
    assert {item.status for item in found.values()} == {"ok", "skipped"}, found
    assert found["nodes.interfaces"].summary == "on every node: net0"
    assert found["nodes.port"].summary == f"port {PORT} is free on 192.0.2.1, and every node reaches it"


def test_a_firewall_that_drops_the_port_is_found(look: Look, pair: Pair) -> None:
    # As an nftables rule `tcp dport 29500 drop`: the packets arrive and nobody answers.
    pair.ip(0, "rule", "add", "pref", "50", "ipproto", "tcp", "dport", str(PORT), "iif", "net0", "blackhole")
    pair.ip(0, "rule", "add", "pref", "100", "lookup", "local")
    pair.ip(0, "rule", "del", "pref", "0")
    found = look()
    assert found["nodes.port"].status == "fail"
    assert found["nodes.port"].summary == "192.0.2.2 cannot reach 192.0.2.1 at port 29500."
    assert "192.0.2.2: no answer in 6 s: a firewall may drop it" in found["nodes.port"].evidence
    assert {item.status for name, item in found.items() if name != "nodes.port"} == {"ok", "skipped"}, found


def test_a_cable_that_is_out(look: Look, pair: Pair) -> None:
    pair.ip(1, "link", "set", "net0", "down")
    found = look()
    assert found["nodes.interfaces"].status == "fail"
    assert "192.0.2.2" in found["nodes.interfaces"].summary
    assert (found["nodes.port"].status, "192.0.2.2" in found["nodes.port"].summary) == ("fail", True)
