"""Runs on a node of a job, started by :mod:`bootstrap.facts.nodes`: says what is true there, and tries the master port.

While the facts are read, the first node listens at the port, and the others connect to it. Both sides say a word made
for this one attempt: a program that happens to listen there is not taken for the first node.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bootstrap import __version__, profiles
from bootstrap.facts import Facts, NetworkFacts, NodeFacts, machine, mounts, network
from bootstrap.facts.collect import collect
from bootstrap.workspace import Workspace
from pipeline.i18n import _

SECTIONS = ("env", "gpu", "sources")
#: How long one attempt to connect, and an answer at the port, may take, in seconds.
ATTEMPT_S = 5.0


def main() -> None:
    """Answer the request in the last argument with one line that begins with the argument before it."""
    mark, text = sys.argv[-2:]
    asked = json.loads(text)
    os.environ["UCLLM_LANG"] = asked["language"]
    print(mark + json.dumps(dataclasses.asdict(answer(asked))), flush=True)


def answer(asked: Mapping[str, Any]) -> NodeFacts:
    """The facts of this node. ``asked`` is what :func:`bootstrap.facts.nodes.collect` sends."""
    root = Path(asked["workspace"])
    with ThreadPoolExecutor(max_workers=1) as pool:
        trying = pool.submit(_port, asked)
        facts = collect(profiles.load(asked["profile"]), Workspace(root), SECTIONS)
        errors = dict(facts.errors)
        disk = machine.disk(root, errors, mounts.read(), must_exist=True)
        marker = asked["marker"]
        seen = os.path.exists(root / marker) if marker else None  # noqa: PTH110  no error where it may not be looked at
        port, met = trying.result()
    return NodeFacts(
        asked["host"],
        asked["slots"],
        env=facts.env.state,
        env_error=facts.env.error,
        versions=versions(facts),
        gpu=facts.gpu,
        network=port,
        disk=disk,
        shared=seen,
        met=met,
        errors=errors,
    )


def versions(facts: Facts) -> dict[str, str]:
    """What must be the same on every node, by name; checkouts by the name of their folder."""
    env = facts.env
    found = {"ucllm": __version__, "Python": env.version}
    found |= {name: dist.version for name, dist in env.dists.items()}
    if env.torch:
        found |= {"torch": env.torch.version, "CUDA": env.torch.cuda}
    found |= {Path(item.path).name: item.head[:12] for item in facts.sources.checkouts.values()}
    return found


def _port(asked: Mapping[str, Any]) -> tuple[NetworkFacts, str]:
    """The network of this node, and why the first node was not reached at the master port (empty: it was, or is this).

    The port is not tried as :mod:`bootstrap.facts.network` does it: several nodes may be one machine.
    """
    port, seconds, word = asked["port"], asked["seconds"], asked["word"].encode("ascii")
    here = NetworkFacts(network.interfaces(), network.adapters())
    if not asked["first"]:
        return here, reach(asked["address"], port, word, seconds)
    free = meet(port, word, asked["others"], seconds)
    owner = network.owner(port) if free is False else ""
    return dataclasses.replace(here, port=port, port_free=free, port_owner=owner), ""


def meet(port: int, word: bytes, others: int, seconds: float) -> bool | None:
    """Listen at ``port`` until so many ``others`` have said the word, at most ``seconds``.

    Returns whether the port could be taken; ``None``: there is no telling.
    """
    end = time.monotonic() + seconds
    try:
        server = _listening(port)
    except OSError as error:
        return False if error.errno in (errno.EADDRINUSE, errno.EACCES) else None
    with server:
        while others and (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                guest = server.accept()[0]
                with guest:
                    guest.settimeout(ATTEMPT_S)
                    if guest.recv(len(word), socket.MSG_WAITALL) == word:
                        guest.sendall(word)
                        others -= 1
            except OSError:  # one that went away, or the end of the time
                continue
    return True


def _listening(port: int) -> socket.socket:
    """A server at ``port`` of every address, as torch's own store is."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise
    return socket.create_server(("", port))  # where IPv6 is switched off


def reach(address: str, port: int, word: bytes, seconds: float) -> str:
    """Connect to the first node, again and again for ``seconds``: it may not listen yet. Why not; empty: it answered.

    A name that is not known and another program at the port are certain at once.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((address, port), timeout=ATTEMPT_S) as server:
                return "" if _greeted(server, word) else _("another program answers there")
        except socket.gaierror as error:
            return _("the name is not known here: {error}").format(error=error.strerror or error)
        except TimeoutError:
            why = _("no answer in {seconds} s: a firewall may drop it").format(seconds=round(seconds))
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() >= end:
            return why
        time.sleep(0.3)


def _greeted(server: socket.socket, word: bytes) -> bool:
    try:
        server.sendall(word)
        return server.recv(len(word), socket.MSG_WAITALL) == word
    except OSError:
        return False
