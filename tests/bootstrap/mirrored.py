"""A profile of everything that a mirror may hold, where it comes from, and a child that can reach nothing else."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bootstrap import wheels
from tests.bootstrap.conftest import Outcome, Tiny
from tests.bootstrap.server import Faulty
from tests.bootstrap.test_sources import git
from tests.bootstrap.wheels import write_tiny

TEXT = b"The text of a book.\n"
BOOK, KERNELS = "thing-1.0.tar.gz", "kernels-2.0.tar.gz"
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
#: In the child: its recipes' texts are one small book.
_CATALOGUE = "import pipeline.recipe; pipeline.recipe.datasets = lambda: {{'botchan': {entry!r}}}\n"
#: In the child: no socket but the mirror's.
ONLY = """
import socket
_connect = socket.socket.connect
def connect(self, address):
    assert address[:2] == ('127.0.0.1', {port}), f'another socket: {{address}}'
    return _connect(self, address)
socket.socket.connect = connect
"""
NO_NETWORK = "import ctypes; assert ctypes.CDLL(None).unshare({flags}) == 0\n"
#: What keeps pip and git from everything else: whatever is not the mirror goes to a port where nobody listens.
_DEAD = "http://127.0.0.1:9"
NOTHING_ELSE = {
    **{f"{name}_proxy": _DEAD for name in ("http", "https", "all")},
    "no_proxy": "127.0.0.1",
    "PIP_FIND_LINKS": "",
    "PIP_NO_INDEX": "",
    "PIP_INDEX_URL": f"{_DEAD}/simple",
    "PIP_EXTRA_INDEX_URL": f"{_DEAD}/more",
    "GIT_ALLOW_PROTOCOL": "file",
}


def _archive(member: str) -> bytes:
    return wheels.sdist({member: TEXT})


class Mirrored(Tiny):
    """The tiny profile with a git source, a source distribution and a recipe's text; where they come from; a mirror."""

    def __init__(self, root: Path, server: Faulty) -> None:
        super().__init__(root)
        self.server = server
        write_tiny(root)
        self.origin = root / "origin"
        git("init", "-q", self.origin)
        (self.origin / "code.py").write_text("value = 1\n", encoding="utf-8")
        git("-C", self.origin, "add", "-A")
        git("-C", self.origin, "commit", "-qm", "one")
        git("-C", self.origin, "tag", "v1")
        self.commit = git("-C", self.origin, "rev-parse", "HEAD")
        profile = self.lock / "profile.toml"
        text = profile.read_text(encoding="utf-8").replace('"env.packages"]', '"env.packages", "source.apex"]')
        source = f'\n[sources.apex]\nurl = "{self.origin}"\nfolder = "apex"\ntag = "v1"\ncommit = "{self.commit}"\n'
        profile.write_text(text + source, encoding="utf-8")
        self.sdists = {BOOK: _archive("thing-1.0/book.txt"), KERNELS: _archive("kernels-2.0/setup.py")}
        sha256 = hashlib.sha256(self.sdists[KERNELS]).hexdigest()
        (self.lock / "kernels.lock").write_text(f"kernels==2.0 \\\n    --hash=sha256:{sha256}\n", encoding="utf-8")
        for name, body in self.sdists.items():
            project = name.partition("-")[0]
            page = f'<a href="../../files/{name}#sha256={hashlib.sha256(body).hexdigest()}">{name}</a>'
            server.files[f"/simple/{project}/"] = ("text/html", page.encode())
            server.files[f"/files/{name}"] = body
        self.entry = {
            "title": "A book",
            "file": "book.txt",
            "sha256": hashlib.sha256(TEXT).hexdigest(),
            "bytes": len(TEXT),
            "sdist": "thing",
            "sdist_file": BOOK,
            "sdist_member": "thing-1.0/book.txt",
            "sdist_sha256": hashlib.sha256(self.sdists[BOOK]).hexdigest(),
        }
        self.patch = _CATALOGUE.format(entry=self.entry)
        self.variables = {"PIP_INDEX_URL": f"{server.url}/simple", "UCLLM_CACHE": str(root / "cache")}

    @property
    def folder(self) -> Path:
        return self.root / "mirror"

    @property
    def index(self) -> dict[str, dict[str, Any]]:
        data = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        return {item["path"]: item for item in data["files"]}

    def mirror(self, command: str, *args: str) -> Outcome:
        return self("mirror", command, str(self.folder), *args, "--json")

    def create(self, *args: str, profile: str = "tiny") -> Outcome:
        return self.mirror("create", "--profile", profile, *args)

    def alone(self, patch: str = "") -> None:
        """From here on nothing that the mirror was made from is there, and no network but what ``patch`` leaves."""
        for name in ("origin", "wheels", "default-wheels", "no-wheels"):
            (self.root / name).rename(self.root / f"gone-{name}")
        self.variables |= NOTHING_ELSE
        self.patch += patch

    def published(self) -> dict[str, bytes | tuple[str, bytes]]:
        return published(self.folder)


def published(folder: Path) -> dict[str, bytes | tuple[str, bytes]]:
    """The mirror as a web server has it."""
    files = {f"/m/{item.relative_to(folder)}": item for item in folder.rglob("*") if item.is_file()}
    pages = {name: ("text/html", item.read_bytes()) for name, item in files.items() if name.endswith(".html")}
    return {**{name.replace("+", "%2B"): item.read_bytes() for name, item in files.items()}, **pages}


def healthy(tiny: Mirrored, outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.out + outcome.err
    assert set(outcome.statuses.values()) == {"ok"}
    assert git("-C", tiny.workspace / "apex", "rev-parse", "HEAD") == tiny.commit
    assert git("-C", tiny.workspace / "apex", "remote", "get-url", "origin") == str(tiny.origin)
    assert git("-C", tiny.workspace / "apex", "tag") == "v1"
    said = subprocess.run([tiny.env / "bin" / "alpha-cli"], capture_output=True, text=True, check=True)
    assert said.stdout == "alpha 1.0\n"


def append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"tampered")
