"""A named mirror is the only thing that setup, doctor and train ask, and is believed only what it must be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from bootstrap import host, mirror
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from tests.bootstrap.mirrored import BOOK, NO_NETWORK, ONLY, TEXT, Mirrored, append, healthy
from tests.bootstrap.server import Faulty, serving


def test_setup_doctor_and_train_without_any_network(made: Mirrored) -> None:
    """The mirror is a folder; the children live in a network namespace of their own, in which there is nothing."""
    flags = 0x40000000 if os.geteuid() == 0 else 0x50000000  # CLONE_NEWNET, and CLONE_NEWUSER for who is not root
    probe = subprocess.run([sys.executable, "-c", NO_NETWORK.format(flags=flags)], capture_output=True)
    made.alone(NO_NETWORK.format(flags=flags) if probe.returncode == 0 else ONLY.format(port=0))
    healthy(made, made.setup("--mirror", str(made.folder)))
    seen = len(made.server.seen)

    # It is recorded: neither doctor nor train need be told again.
    shutil.rmtree(made.site / "alpha-1.0.dist-info")
    shutil.rmtree(made.workspace / "apex")
    text = made("doctor")
    assert f", mirror {made.folder}\n" in text.out
    healthy(made, made.doctor("--fix", "--yes"))
    trained = made("train", "tokenizer", "--no-checks", "--json")
    assert (made.workspace / "data" / "book.txt").read_bytes() == TEXT, trained.out
    assert len(made.server.seen) == seen
    again = made.setup()
    assert (again.code, again.json["data"]["actions"], again.json["data"]["mirror"]) == (0, [], str(made.folder))


def test_over_http_only_the_mirror_is_asked(made: Mirrored) -> None:
    with serving(Faulty(made.published())) as server:
        port = int(server.url.rpartition(":")[2])
        made.alone(ONLY.format(port=port))
        seen = len(made.server.seen)
        healthy(made, made.setup("--mirror", f"{server.url}/m/"))
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
    assert host.without_logins("http://me:secret@mirror.example:81/m") == "http://mirror.example:81/m"


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
    append(path)
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


@pytest.mark.slow
def test_pip_and_a_server_that_fails(made: Mirrored) -> None:
    """pip tries 503 again; a broken connection is an error, leaves nothing, and the same command goes on."""
    with serving(Faulty(made.published())) as server:
        made.alone(ONLY.format(port=int(server.url.rpartition(":")[2])))
        whole = server.files["/m/wheels/beta-2.0-py3-none-any.whl"]
        assert isinstance(whole, bytes)
        server.files["/m/wheels/beta-2.0-py3-none-any.whl"] = whole[:200]
        broken = made.setup("--mirror", f"{server.url}/m")
        assert broken.code == 10
        assert broken.json["errors"][0]["code"] == "command.failed"
        assert not list(made.site.glob("alpha*"))
        server.files["/m/wheels/beta-2.0-py3-none-any.whl"] = whole
        server.faults = ["", "503", "", "503"]
        healthy(made, made.setup())


def test_the_tool_can_be_told_to_leave_the_mirror(made: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(made.workspace, str(made.folder))
    workspace.state.mkdir(parents=True)
    workspace.record("tiny")
    assert Workspace(made.workspace).from_mirror(None).mirror == str(made.folder)
    monkeypatch.setenv("UCLLM_MIRROR", "http://x/m")
    assert Workspace(made.workspace).from_mirror(None).mirror == "http://x/m"
    assert Workspace(made.workspace).from_mirror("").mirror == ""
