"""A mirror: made, checked, and the only thing that setup, doctor and train ask once it is named."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap import host, mirror
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from tests.bootstrap import conda_channel
from tests.bootstrap.conftest import Outcome, Tiny
from tests.bootstrap.server import Faulty, serving
from tests.bootstrap.test_conda import write as write_conda
from tests.bootstrap.test_sources import git
from tests.bootstrap.wheels import build, pin, write_tiny

TEXT = b"The text of a book.\n"
BOOK, KERNELS = "thing-1.0.tar.gz", "kernels-2.0.tar.gz"
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
#: In the child: its recipes' texts are one small book.
_CATALOGUE = "import pipeline.recipe; pipeline.recipe.datasets = lambda: {{'botchan': {entry!r}}}\n"
#: In the child: no socket but the mirror's.
_ONLY = """
import socket
_connect = socket.socket.connect
def connect(self, address):
    assert address[:2] == ('127.0.0.1', {port}), f'another socket: {{address}}'
    return _connect(self, address)
socket.socket.connect = connect
"""
_NO_NETWORK = "import ctypes; assert ctypes.CDLL(None).unshare({flags}) == 0\n"
#: What keeps pip and git from everything else: whatever is not the mirror goes to a port where nobody listens.
_DEAD = "http://127.0.0.1:9"
_NOTHING_ELSE = {
    **{f"{name}_proxy": _DEAD for name in ("http", "https", "all")},
    "no_proxy": "127.0.0.1",
    "PIP_FIND_LINKS": "",
    "PIP_NO_INDEX": "",
    "PIP_INDEX_URL": f"{_DEAD}/simple",
    "PIP_EXTRA_INDEX_URL": f"{_DEAD}/more",
    "GIT_ALLOW_PROTOCOL": "file",
}


def _archive(member: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(member)
        info.size = len(TEXT)
        archive.addfile(info, io.BytesIO(TEXT))
    return buffer.getvalue()


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
        self.variables |= _NOTHING_ELSE
        self.patch += patch

    def published(self) -> dict[str, bytes | tuple[str, bytes]]:
        return _published(self.folder)


def _published(folder: Path) -> dict[str, bytes | tuple[str, bytes]]:
    """The mirror as a web server has it."""
    files = {f"/m/{item.relative_to(folder)}": item for item in folder.rglob("*") if item.is_file()}
    pages = {name: ("text/html", item.read_bytes()) for name, item in files.items() if name.endswith(".html")}
    return {**{name.replace("+", "%2B"): item.read_bytes() for name, item in files.items()}, **pages}


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Mirrored]:
    """The profile and where everything comes from; nothing is mirrored yet."""
    with serving(Faulty()) as server:
        yield Mirrored(tmp_path, server)


@pytest.fixture
def made(origin: Mirrored) -> Mirrored:
    """The same, mirrored."""
    outcome = origin.create()
    assert outcome.code == 0, outcome.out + outcome.err
    mirror.index.cache_clear()
    return origin


def _healthy(tiny: Mirrored, outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.out + outcome.err
    assert set(outcome.statuses.values()) == {"ok"}
    assert git("-C", tiny.workspace / "apex", "rev-parse", "HEAD") == tiny.commit
    assert git("-C", tiny.workspace / "apex", "remote", "get-url", "origin") == str(tiny.origin)
    assert git("-C", tiny.workspace / "apex", "tag") == "v1"
    said = subprocess.run([tiny.env / "bin" / "alpha-cli"], capture_output=True, text=True, check=True)
    assert said.stdout == "alpha 1.0\n"


def test_what_is_collected(made: Mirrored) -> None:
    index = made.index
    assert sorted(index) == [
        f"datasets/{BOOK}",
        f"git/apex-{made.commit[:12]}.bundle",
        "wheels/alpha-1.0-py3-none-any.whl",
        "wheels/beta-2.0-py3-none-any.whl",
        "wheels/index.html",
        f"wheels/{KERNELS}",
        "wheels/torch-9.9+cpu-py3-none-any.whl",
    ]
    for path, entry in index.items():
        body = (made.folder / path).read_bytes()
        assert (entry["sha256"], entry["size"]) == (hashlib.sha256(body).hexdigest(), len(body))
    assert index["wheels/alpha-1.0-py3-none-any.whl"] == {
        **index["wheels/alpha-1.0-py3-none-any.whl"],
        "kind": "wheel",
        "name": "alpha-1.0-py3-none-any.whl",
        "url": "",  # pip found it in a folder
    }
    assert index[f"wheels/{KERNELS}"]["url"] == f"{made.server.url}/files/{KERNELS}"
    assert {path.name for path in made.folder.iterdir()} == {".lock", "datasets", "git", "index.json", "wheels"}
    checked = made.mirror("verify")
    assert (checked.code, checked.json["data"]["files"]) == (0, 7)


def test_setup_doctor_and_train_without_any_network(made: Mirrored) -> None:
    """The mirror is a folder; the children live in a network namespace of their own, in which there is nothing."""
    flags = 0x40000000 if os.geteuid() == 0 else 0x50000000  # CLONE_NEWNET, and CLONE_NEWUSER for who is not root
    probe = subprocess.run([sys.executable, "-c", _NO_NETWORK.format(flags=flags)], capture_output=True)
    made.alone(_NO_NETWORK.format(flags=flags) if probe.returncode == 0 else _ONLY.format(port=0))
    _healthy(made, made.setup("--mirror", str(made.folder)))
    seen = len(made.server.seen)

    # It is recorded: neither doctor nor train need be told again.
    shutil.rmtree(made.site / "alpha-1.0.dist-info")
    shutil.rmtree(made.workspace / "apex")
    text = made("doctor")
    assert f", mirror {made.folder}\n" in text.out
    _healthy(made, made.doctor("--fix", "--yes"))
    trained = made("train", "tokenizer", "--no-checks", "--json")
    assert (made.workspace / "data" / "book.txt").read_bytes() == TEXT, trained.out
    assert len(made.server.seen) == seen
    again = made.setup()
    assert (again.code, again.json["data"]["actions"], again.json["data"]["mirror"]) == (0, [], str(made.folder))


def test_over_http_only_the_mirror_is_asked(made: Mirrored) -> None:
    with serving(Faulty(made.published())) as server:
        port = int(server.url.rpartition(":")[2])
        made.alone(_ONLY.format(port=port))
        seen = len(made.server.seen)
        _healthy(made, made.setup("--mirror", f"{server.url}/m/"))
        trained = made("train", "tokenizer", "--no-checks", "--json")
        assert (made.workspace / "data" / "book.txt").read_bytes() == TEXT, trained.out
        asked = {path for path, _range in server.seen}
        assert asked == {
            f"/m/{name}"
            for name in (
                "index.json",
                "wheels/index.html",
                "wheels/alpha-1.0-py3-none-any.whl",
                "wheels/beta-2.0-py3-none-any.whl",
                "wheels/torch-9.9%2Bcpu-py3-none-any.whl",
                f"git/apex-{made.commit[:12]}.bundle",
                f"datasets/{BOOK}",
            )
        }
        assert len(made.server.seen) == seen


def test_pip_is_told_to_trust_a_mirror_without_https(made: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_read", lambda _address: (made.folder / "index.json").read_bytes())
    told = mirror.pip_variables(Workspace(made.workspace, "http://me:secret@mirror.example:81/m"))
    assert told["PIP_TRUSTED_HOST"] == "mirror.example:81"
    assert told["PIP_FIND_LINKS"] == "http://me:secret@mirror.example:81/m/wheels/index.html"
    assert mirror.pip_variables(Workspace(made.workspace, "https://mirror.example"))["PIP_TRUSTED_HOST"] == ""
    assert mirror.pip_variables(Workspace(made.workspace)) == {}
    assert mirror.shown("http://me:secret@mirror.example:81/m") == "http://mirror.example:81/m"


def _append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"tampered")


@pytest.mark.parametrize(
    ("pattern", "command", "words"),
    [
        ("wheels/beta-*.whl", "setup", "DO NOT MATCH THE HASHES"),
        ("wheels/torch-*.whl", "setup", "DO NOT MATCH THE HASHES"),
        ("git/*.bundle", "setup", "apex-{commit}.bundle is not the file it should be; it was thrown away."),
        (f"datasets/{BOOK}", "train tokenizer --no-checks", f"{BOOK} is not the file it should be"),
    ],
)
def test_what_was_tampered_with_is_refused(made: Mirrored, pattern: str, command: str, words: str) -> None:
    (path,) = made.folder.glob(pattern)
    _append(path)
    outcome = made(*command.split(), "--profile", "tiny", "--mirror", str(made.folder), "--json")
    assert outcome.code in (10, 11), outcome.out
    (problem,) = outcome.json["errors"]
    assert words.format(commit=made.commit[:12]) in problem["message"]
    assert "ucllm mirror verify DIR" in problem["hint"]
    assert not (made.workspace / "apex").exists()
    assert not (made.workspace / "data").exists()
    checked = made.mirror("verify")
    assert (checked.code, len(checked.json["errors"])) == (1, 1)
    assert str(path.relative_to(made.folder)) in checked.json["errors"][0]["message"]
    assert made.create().code == 0, "the same command repairs it"
    assert made.mirror("verify").code == 0


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (shutil.rmtree, "There is no folder"),
        (lambda folder: (folder / "index.json").unlink(), "It has no index.json"),
        (lambda folder: (folder / "index.json").write_text("{}"), "it is no index of a mirror"),
        (lambda folder: (folder / "index.json").write_text("<html>"), "index.json: Expecting value"),
        (lambda folder: (folder / "index.json").write_text('{"mirror_version": 2}'), "another version of ucllm: 2"),
    ],
)
def test_a_mirror_that_is_none(made: Mirrored, harm: Any, why: str) -> None:
    harm(made.folder)
    outcome = made.setup("--mirror", str(made.folder))
    assert outcome.code == 10
    (problem,) = outcome.json["errors"]
    assert problem["code"] == "mirror.unreadable", problem
    assert f"The mirror {made.folder} cannot be read. " in problem["message"]
    assert why in problem["message"]
    assert "ucllm mirror create" in problem["hint"]
    checked = made.mirror("verify")
    assert (checked.code, checked.json["command"]) == (2, "mirror verify")
    assert why in checked.json["errors"][0]["message"]


def test_an_index_must_not_lead_out_of_the_mirror() -> None:
    entry = {"kind": "git", "name": "x", "path": "../x", "sha256": "0" * 64, "size": 1, "url": ""}
    data = {"mirror_version": 1, "profiles": {}, "files": [entry]}
    with pytest.raises(ValueError, match=r"\.\./x leads out of the mirror"):
        mirror.parse(json.dumps(data))
    for path in ("/x", "a/../../x", ""):
        with pytest.raises(ValueError, match="leads out"):
            mirror.parse(json.dumps({**data, "files": [{**entry, "path": path}]}))


def test_what_the_mirror_lacks_is_asked_of_nobody(made: Mirrored) -> None:
    text = (made.lock / "profile.toml").read_text(encoding="utf-8")
    (made.lock / "profile.toml").write_text(text.replace('"apex"', '"apex2"'), encoding="utf-8")
    outcome = made.setup("--mirror", str(made.folder))
    (problem,) = outcome.json["errors"]
    assert (outcome.code, problem["code"]) == (10, "mirror.lacks")
    assert f"has no git/apex2-{made.commit[:12]}.bundle" in problem["message"]
    assert f"`ucllm mirror create {made.folder} --profile tiny`" in problem["hint"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "RETRY_WAITS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(host, "TIMEOUT_S", 0.4)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["503", "cut 30", "stall 30"])
def test_a_server_that_fails_now_and_then(made: Mirrored, fault: str) -> None:
    with serving(Faulty(made.published(), faults=[fault, "", fault, fault])) as server:
        workspace = Workspace(made.workspace, f"{server.url}/m")
        target = made.root / "got"
        mirror.fetch(workspace, "http://nowhere.invalid/", target, str(made.entry["sdist_sha256"]))
        assert target.read_bytes() == made.sdists[BOOK]
        ranges = [asked for path, asked in server.seen if path.endswith(BOOK)]
        assert ranges == (["", "", ""] if fault == "503" else ["", "bytes=30-", "bytes=60-"])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("faults", "files", "code", "words"),
    [
        (["503"] * 9, {}, "mirror.unreadable", "index.json: HTTP 503 Service Unavailable"),
        (["404"], {}, "mirror.unreadable", "index.json: HTTP 404 Not Found"),
        (["stall 5"] * 9, {}, "mirror.unreadable", "timed out"),
        ([], {"/m/index.json": b"sorry"}, "mirror.unreadable", "index.json: Expecting value"),
        (["", *["503"] * 9], {}, "fetch.failed", "HTTP 503"),
        ([], {f"/m/datasets/{BOOK}": b"wrong bytes"}, "fetch.wrong-hash", "It came from the mirror http://127.0.0.1"),
    ],
)
def test_a_server_that_goes_on_failing(
    made: Mirrored, faults: list[str], files: dict[str, Any], code: str, words: str
) -> None:
    with serving(Faulty({**made.published(), **files}, faults=faults)) as server:
        workspace = Workspace(made.workspace, f"{server.url}/m")
        with pytest.raises(UcllmError) as caught:
            mirror.fetch(workspace, "http://nowhere.invalid/", made.root / "got", str(made.entry["sdist_sha256"]))
        assert caught.value.problems[0].code == code
        assert words in caught.value.problems[0].message
        assert "ucllm mirror" in caught.value.problems[0].hint
        assert not (made.root / "got").exists()


def test_pip_and_a_server_that_fails(made: Mirrored) -> None:
    """pip tries 503 again; a broken connection is an error, leaves nothing, and the same command goes on."""
    with serving(Faulty(made.published())) as server:
        made.alone(_ONLY.format(port=int(server.url.rpartition(":")[2])))
        whole = server.files["/m/wheels/beta-2.0-py3-none-any.whl"]
        assert isinstance(whole, bytes)
        server.files["/m/wheels/beta-2.0-py3-none-any.whl"] = whole[:200]
        broken = made.setup("--mirror", f"{server.url}/m")
        assert broken.code == 10
        assert broken.json["errors"][0]["code"] == "command.failed"
        assert not list(made.site.glob("alpha*"))
        server.files["/m/wheels/beta-2.0-py3-none-any.whl"] = whole
        server.faults = ["", "503", "", "503"]
        _healthy(made, made.setup())


def test_create_says_all_that_it_cannot_get_and_goes_on_later(origin: Mirrored) -> None:
    origin.origin.rename(origin.root / "away")
    page = origin.server.files.pop("/simple/thing/")
    outcome = origin.create()
    assert (outcome.code, outcome.json["command"]) == (1, "mirror create")
    assert sorted(item["code"] for item in outcome.json["errors"]) == ["command.failed", "fetch.failed"]
    assert not (origin.folder / "index.json").exists()
    stamp = (origin.folder / "wheels" / "alpha-1.0-py3-none-any.whl").stat().st_mtime_ns
    (origin.root / "away").rename(origin.origin)
    origin.server.files["/simple/thing/"] = page
    shutil.rmtree(origin.root / "wheels")  # what was fetched is not asked for again
    outcome = origin.create()
    assert outcome.code == 0, outcome.out
    assert (origin.folder / "wheels" / "alpha-1.0-py3-none-any.whl").stat().st_mtime_ns == stamp
    assert origin.mirror("verify").code == 0
    before = (origin.folder / "index.json").read_bytes()
    seen = len(origin.server.seen)
    assert origin.create().code == 0
    assert (origin.folder / "index.json").read_bytes() == before
    assert len(origin.server.seen) == seen, "nothing is asked for what is there"


def test_leftovers_of_a_killed_create_are_in_nobodys_way(origin: Mirrored) -> None:
    stage = origin.folder / ".work" / f"requirements.lock-{OWN}-0" / "wheels"
    stage.mkdir(parents=True)
    (stage / "beta-2.0-py3-none-any.whl").write_bytes(b"half")
    (origin.folder / ".work" / "apex.git").mkdir()
    (origin.folder / "datasets").mkdir()
    (origin.folder / "datasets" / f"{BOOK}.part").write_bytes(origin.sdists[BOOK][:40])
    outcome = origin.create()
    assert outcome.code == 0, outcome.out
    assert ("/files/" + BOOK, "bytes=40-") in origin.server.seen
    assert origin.mirror("verify").code == 0


def test_two_profiles_in_one_folder(made: Mirrored) -> None:
    before = made.index
    outcome = made.create("--target-gpu", "sm_80", profile="other")
    assert outcome.code == 0, outcome.out
    assert set(made.index) - set(before) == {"wheels/alpha-1.1-py3-none-any.whl"}
    data = json.loads((made.folder / "index.json").read_text(encoding="utf-8"))
    assert data["profiles"] == {
        "tiny": {"pythons": [OWN], "target_gpu": ""},
        "other": {"pythons": [OWN], "target_gpu": "sm_80"},
    }
    made.alone()
    _healthy(made, made.setup("--mirror", str(made.folder)))


def test_another_file_of_the_same_name_is_refused(made: Mirrored) -> None:
    beta = build(made.root / "wheels", "beta", "2.0", text="another")
    (made.root / "locks" / "other" / "requirements.lock").write_text(pin(beta), encoding="utf-8")
    outcome = made.create(profile="other")
    assert (outcome.code, outcome.json["errors"][0]["code"]) == (1, "mirror.conflict")
    assert made.mirror("verify").code == 0


def test_wheels_for_pythons_that_are_not_here(origin: Mirrored) -> None:
    """Markers and tags are those of the Python asked for, not of the one that runs ucllm."""
    wheels = {}
    for tag in ("cp310", "cp313"):
        made = build(origin.root / "built", "delta", "1.0", text=tag)
        name = f"delta-1.0-{tag}-{tag}-manylinux_2_17_{os.uname().machine}.whl"
        wheels[tag] = made.rename(origin.root / "wheels" / name)
    hashes = [f"    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in wheels.values()]
    old = build(origin.root / "wheels", "epsilon", "1.0")
    with (origin.lock / "requirements.lock").open("a", encoding="utf-8") as stream:
        stream.write("delta==1.0 \\\n" + " \\\n".join(hashes) + "\n" + pin(old, "python_full_version < '3.11'"))
    assert origin.create("--python", "3.10").code == 0
    names = {Path(path).name for path in origin.index}
    assert wheels["cp310"].name in names
    assert wheels["cp313"].name not in names
    assert old.name in names
    assert origin.create("--python", "3.13").code == 0
    assert wheels["cp313"].name in {Path(path).name for path in origin.index}
    assert not any("gamma" in path for path in origin.index)
    refused = origin.create("--python", "3.8", "--python", "2.7")
    assert (refused.code, len(refused.json["errors"])) == (2, 2)


def test_without_a_cpu_wheel_of_torch_the_default_is_taken(origin: Mirrored) -> None:
    (origin.root / "wheels" / "torch-9.9+cpu-py3-none-any.whl").unlink()
    outcome = origin.create()
    assert outcome.code == 0, outcome.out
    assert "no CPU wheel can be had" in outcome.err
    assert {"wheels/torch-9.9-py3-none-any.whl", "wheels/cudathing-1.0-py3-none-any.whl"} <= {*origin.index}
    origin.alone()
    _healthy(origin, origin.setup("--mirror", str(origin.folder)))


def test_a_tag_that_was_moved_is_left_out_and_a_commit_that_is_gone_is_told(origin: Mirrored) -> None:
    (origin.origin / "code.py").write_text("value = 2\n", encoding="utf-8")
    git("-C", origin.origin, "commit", "-qam", "two")
    git("-C", origin.origin, "tag", "-f", "v1")
    assert origin.create().code == 0
    (bundle,) = origin.folder.glob("git/*.bundle")
    heads = git("bundle", "list-heads", bundle).splitlines()
    assert heads == [f"{origin.commit} refs/heads/ucllm"]
    profile = origin.lock / "profile.toml"
    profile.write_text(profile.read_text("utf-8").replace(origin.commit, "0" * 40), encoding="utf-8")
    outcome = origin.create()
    assert (outcome.code, outcome.json["errors"][0]["code"]) == (1, "source.no-commit")


def test_built_wheels_go_with_the_gpu_they_are_for(origin: Mirrored) -> None:
    cache = origin.root / "cache" / "wheels"
    for name, gpu, python in (("a-1", "8.9", OWN), ("b-2", "8.0", OWN), ("c-3", "", OWN), ("d-4", "8.9", "2.7")):
        wheel = build(cache / name, name[0], "1.0")
        record = {"wheel": wheel.name, "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
        record_text = json.dumps({**record, "inputs": {"GPU": gpu, "Python": python}})
        (cache / name / "build.json").write_text(record_text, encoding="utf-8")
    assert origin.create("--target-gpu", "sm_89").code == 0
    assert sorted(path for path in origin.index if path.startswith("built/")) == [
        "built/a-1/a-1.0-py3-none-any.whl",
        "built/a-1/build.json",
        "built/c-3/build.json",
        "built/c-3/c-1.0-py3-none-any.whl",
    ]
    assert origin.mirror("verify").code == 0
    mirror.index.cache_clear()
    workspace, other = Workspace(origin.workspace, str(origin.folder)), origin.root / "other-cache"
    for name in ("a-1", "b-2"):
        mirror.fetch_built(workspace, other / name)
    assert sorted(path.name for path in other.rglob("*")) == ["a-1", "a-1.0-py3-none-any.whl", "build.json"]
    refused = origin.create("--target-gpu", "L4")
    assert (refused.code, "sm_89" in refused.json["errors"][0]["hint"]) == (2, True)


def test_verify_tells_everything_at_once(made: Mirrored) -> None:
    _append(made.folder / f"datasets/{BOOK}")
    beta = made.folder / "wheels" / "beta-2.0-py3-none-any.whl"
    beta.write_bytes(beta.read_bytes()[:-1] + b"x")
    (made.folder / "wheels" / "alpha-1.0-py3-none-any.whl").unlink()
    (made.folder / "notes.txt").touch()
    checked = made.mirror("verify")
    assert checked.code == 1
    told = {item["message"].partition(":")[0]: item["code"] for item in checked.json["errors"]}
    assert told == {
        f"datasets/{BOOK}": "mirror.altered",
        "notes.txt": "mirror.unknown",
        "wheels/alpha-1.0-py3-none-any.whl": "mirror.missing",
        "wheels/beta-2.0-py3-none-any.whl": "mirror.altered",
    }
    hints = [item["hint"] for item in checked.json["errors"] if item["hint"]]
    assert len(hints) == 2
    assert f"ucllm mirror create {made.folder} --profile tiny" in " ".join(hints)


def test_the_tool_can_be_told_to_leave_the_mirror(made: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(made.workspace, str(made.folder))
    workspace.state.mkdir(parents=True)
    workspace.record("tiny")
    assert Workspace(made.workspace).from_mirror(None).mirror == str(made.folder)
    monkeypatch.setenv("UCLLM_MIRROR", "http://x/m")
    assert Workspace(made.workspace).from_mirror(None).mirror == "http://x/m"
    assert Workspace(made.workspace).from_mirror("").mirror == ""


def test_a_profile_without_locks_cannot_be_mirrored(origin: Mirrored) -> None:
    text = (origin.lock / "profile.toml").read_text(encoding="utf-8")
    text = text.replace('locks = ["requirements.lock"]', 'requirements = ["alpha>=1"]')
    (origin.lock / "profile.toml").write_text(text, encoding="utf-8")
    outcome = origin.create()
    assert (outcome.code, outcome.json["errors"][0]["code"]) == (1, "mirror.no-lock")


def test_a_conda_profile(origin: Mirrored, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Installer, packages and what they came to; conda itself could install from there too."""
    made = origin.root / "made"
    conda_channel.write_channel(made / "channel")
    conda_channel.write_installer(made)
    tiny = write_conda(tmp_path_factory.mktemp("conda"), made)
    profile = str(tiny.root / "profile")
    tiny.patch = origin.patch
    tiny.variables = {"PIP_INDEX_URL": f"{origin.server.url}/simple", "UCLLM_CACHE": str(origin.root / "cache")}
    folder = tiny.root / "mirror"
    outcome = tiny("mirror", "create", str(folder), "--profile", profile, "--json")
    assert outcome.code == 0, outcome.out + outcome.err
    kinds = outcome.json["data"]["kinds"]
    assert kinds == {"conda": 6, "dataset": 1, "installer": 1, "page": 1, "repodata": 2, "solution": 1, "wheel": 2}
    assert tiny("mirror", "verify", str(folder)).code == 0
    (repodata,) = folder.glob(f"conda/**/{conda_channel.SUBDIR}/repodata.json")
    names = json.loads(repodata.read_text(encoding="utf-8"))["packages"]
    assert {path.name for path in repodata.parent.glob("*.tar.bz2")} == {*names}
    before = (folder / "index.json").read_bytes()
    (tiny.root / "channel").rename(tiny.root / "away")
    assert tiny("mirror", "create", str(folder), "--profile", profile, "--json").code == 0, "nothing is resolved again"
    assert (folder / "index.json").read_bytes() == before

    (tiny.root / "standin_miniconda.sh").unlink()
    shutil.rmtree(tiny.root / "wheels")
    tiny.variables |= _NOTHING_ELSE
    with serving(Faulty(_published(folder))) as server:
        tiny.patch = _ONLY.format(port=int(server.url.rpartition(":")[2]))
        done = tiny("setup", "--profile", profile, "--mirror", f"{server.url}/m", "--json")
        assert done.code == 0, done.out + done.err
        assert set(done.statuses.values()) <= {"ok", "skipped", "warn"}
        assert {f"/m/{path}" for path in ("index.json", "wheels/index.html")} <= {path for path, _ in server.seen}
    (meta,) = (tiny.env / "conda-meta").glob("pytorch-2*.json")
    assert json.loads(meta.read_text(encoding="utf-8"))["url"].startswith((tiny.root / "channel").as_uri())
