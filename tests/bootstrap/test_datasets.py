"""A recipe's text, from the package index that pip is configured to use."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from bootstrap import datasets, host, mirror_create, profiles
from bootstrap.mirror import Index
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from tests.bootstrap import wheels
from tests.bootstrap.server import Faulty, serving

TEXT = b"The text of a book.\n"
FILE = "thing-1.0.tar.gz"
#: What the fixture put into the catalogue.
CATALOGUE: dict[str, dict[str, object]] = {}


def _sdist(member: str = "thing-1.0/book.txt") -> bytes:
    return wheels.sdist({member: TEXT})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """An index with the sdist, and a catalogue with one dataset in it."""
    body = _sdist()
    entry = {
        "title": "A book",
        "file": "book.txt",
        "sha256": hashlib.sha256(TEXT).hexdigest(),
        "bytes": len(TEXT),
        "sdist": "thing",
        "sdist_file": FILE,
        "sdist_member": "thing-1.0/book.txt",
        "sdist_sha256": hashlib.sha256(body).hexdigest(),
    }
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(host, "RETRY_WAITS_S", ())
    monkeypatch.setattr(datasets, "datasets", lambda: {"book": entry})
    monkeypatch.setitem(CATALOGUE, "book", entry)
    with serving(Faulty({f"/files/{FILE}": body})) as server:
        _html(server)
        monkeypatch.setattr(datasets, "_index", lambda _python: f"{server.url}/simple")
        yield server


def _html(server: Faulty) -> None:
    page = f'<html><a href="../../files/{FILE}#sha256=abc">\n{FILE}</a> <a>no link</a></html>'
    server.files["/simple/thing/"] = ("text/html", page.encode())


def _json(server: Faulty) -> None:
    page = json.dumps({"files": [{"filename": FILE, "url": f"../../files/{FILE}"}]})
    server.files["/simple/thing/"] = ("application/vnd.pypi.simple.v1+json", page.encode())


def _refused(workspace: Workspace, name: str = "book") -> UcllmError:
    with pytest.raises(UcllmError) as caught:
        datasets.ensure(name, workspace, lambda _text: None)
    return caught.value


@pytest.mark.parametrize("page", [_html, _json])
def test_fetched_once(index: Faulty, workspace: Workspace, page: object) -> None:
    assert callable(page)
    page(index)
    said: list[str] = []
    path = datasets.ensure("book", workspace, said.append)
    assert path == workspace.root / "data" / "book.txt"
    assert path.read_bytes() == TEXT
    assert said == ["fetching A book (0 kB)"]
    assert [seen[0] for seen in index.seen] == ["/simple/thing/", f"/files/{FILE}"]
    assert datasets.ensure("book", workspace, said.append) == path
    assert len(index.seen) == 2
    path.unlink()
    assert datasets.ensure("book", workspace, said.append).read_bytes() == TEXT
    assert len(index.seen) == 2, "the archive is kept"
    assert [item.name for item in path.parent.iterdir()] == ["book.txt"]


def test_an_altered_text_is_refused_and_left_alone(index: Faulty, workspace: Workspace) -> None:
    path = datasets.ensure("book", workspace, lambda _text: None)
    path.write_bytes(TEXT + b"mine")
    error = _refused(workspace)
    assert error.problems[0].code == "dataset.altered"
    assert f"mv {path} {path}.mine" in error.problems[0].hint
    assert path.read_bytes() == TEXT + b"mine"
    assert len(index.seen) == 2


def test_an_altered_archive_is_fetched_again(index: Faulty, workspace: Workspace) -> None:
    datasets.ensure("book", workspace, lambda _text: None).unlink()
    (workspace.state / "cache" / "downloads" / FILE).write_bytes(b"altered")
    assert datasets.ensure("book", workspace, lambda _text: None).read_bytes() == TEXT
    assert len(index.seen) == 4


def test_the_wrong_archive(index: Faulty, workspace: Workspace) -> None:
    index.files[f"/files/{FILE}"] = b"something else"
    assert _refused(workspace).problems[0].code == "fetch.wrong-hash"
    assert not (workspace.root / "data").exists()


def test_the_wrong_member(index: Faulty, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    body = _sdist("thing-1.0/other.txt")
    index.files[f"/files/{FILE}"] = body
    entry = {**CATALOGUE["book"], "sdist_sha256": hashlib.sha256(body).hexdigest()}
    monkeypatch.setattr(datasets, "datasets", lambda: {"book": entry})
    assert _refused(workspace).problems[0].code == "fetch.wrong-hash"
    assert not (workspace.root / "data").exists()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>nothing here</html>"),
        ("application/json", b'{"files": []}'),
    ],
)
def test_an_index_without_the_file(index: Faulty, workspace: Workspace, kind: str, body: bytes) -> None:
    index.files["/simple/thing/"] = (kind, body)
    error = _refused(workspace)
    assert error.problems[0].code == "fetch.not-found"
    assert "PIP_INDEX_URL" in error.problems[0].hint


@pytest.mark.parametrize("body", [b"not json", b"[]", b'{"files": [{}]}'])
def test_an_index_that_talks_nonsense(index: Faulty, workspace: Workspace, body: bytes) -> None:
    index.files["/simple/thing/"] = ("application/json", body)
    assert _refused(workspace).problems[0].code == "fetch.failed"


def test_an_index_that_cannot_be_reached(index: Faulty, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    index.faults = ["500"]
    assert _refused(workspace).problems[0].code == "fetch.failed"
    monkeypatch.setattr(datasets, "_index", lambda _python: "http://127.0.0.1:9/simple")
    assert "Connection refused" in _refused(workspace).problems[0].why


def test_an_index_with_a_login(index: Faulty, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual form of a company's index; the login goes to its files as well, and into no message."""
    index.login = "Basic bWU6czNjcmV0"
    address = index.url.replace("//", "//me:s3cret@")
    monkeypatch.setattr(datasets, "_index", lambda _python: f"{address}/simple")
    assert datasets.ensure("book", workspace, lambda _text: None).read_bytes() == TEXT
    assert index.logins == [index.login] * 2


def test_a_login_stays_with_its_host(index: Faulty, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    body = index.files[f"/files/{FILE}"]
    with serving(Faulty({f"/files/{FILE}": body})) as other:
        page = json.dumps({"files": [{"filename": FILE, "url": f"{other.url}/files/{FILE}"}]}).encode()
        index.files["/simple/thing/"] = ("application/json", page)
        address = index.url.replace("//", "//me:s3cret@")
        monkeypatch.setattr(datasets, "_index", lambda _python: f"{address}/simple")
        assert datasets.ensure("book", workspace, lambda _text: None).read_bytes() == TEXT
        assert other.logins == [""]


def test_a_data_folder_that_cannot_be_made(index: Faulty, workspace: Workspace) -> None:
    workspace.root.mkdir()
    (workspace.root / "data").write_text("in the way", encoding="utf-8")
    assert _refused(workspace).problems[0].code == "fetch.not-writable"
    assert index.seen


def test_an_unknown_name(index: Faulty, workspace: Workspace) -> None:
    error = _refused(workspace, "boook")
    assert (error.problems[0].code, error.problems[0].hint) == ("dataset.unknown", "Did you mean `book`?")
    assert index.seen == []


def test_the_index_is_the_one_that_pip_uses(
    env_python: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.env.parent.mkdir(parents=True)
    workspace.env.symlink_to(env_python.parents[1])
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple/")
    assert datasets._index(str(workspace.python)) == "http://index.invalid/simple"


class _Hub(http.server.BaseHTTPRequestHandler):
    """A file of a dataset as the Hub offers it: its sha256 in a header before the redirect, the content behind it."""

    content, told = b'{"text": "### Human: a### Assistant: b"}\n', ""

    def do_HEAD(self) -> None:
        self.send_response(302)
        self.send_header("X-Linked-Etag", f'"{self.told}"')
        self.send_header("Location", "/behind")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    class Served(_Hub):
        told = hashlib.sha256(_Hub.content).hexdigest()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield Served
        server.shutdown()


def test_a_dataset_of_the_hub_is_compared_with_the_hash_that_it_tells(tmp_path: Path, hub: type[_Hub]) -> None:
    workspace = Workspace(tmp_path)
    path = datasets.ensure("openassistant", workspace, lambda _text: None)
    assert path.read_bytes() == hub.content
    assert datasets.ensure("openassistant", workspace, lambda _text: None) == path
    path.write_bytes(b"altered")
    with pytest.raises(UcllmError) as caught:
        datasets.ensure("openassistant", workspace, lambda _text: None)
    assert caught.value.problems[0].code == "dataset.altered"


def test_another_content_than_the_hub_tells_is_refused(tmp_path: Path, hub: type[_Hub]) -> None:
    hub.told = "0" * 64
    with pytest.raises(UcllmError) as caught:
        datasets.ensure("openassistant", Workspace(tmp_path), lambda _text: None)
    assert caught.value.problems[0].code == "fetch.wrong-hash"
    assert not datasets.path_of("openassistant", Workspace(tmp_path)).exists()


def test_a_dataset_that_was_never_published_asks_for_ones_own(tmp_path: Path) -> None:
    with pytest.raises(UcllmError) as caught:
        datasets.ensure("book+wikija", Workspace(tmp_path), lambda _text: None)
    assert caught.value.problems[0].code == "dataset.own"
    assert "--set data.input=FILE" in caught.value.problems[0].hint
    own = datasets.path_of("book+wikija", Workspace(tmp_path))
    own.parent.mkdir(parents=True)
    own.write_text('{"text": "mine"}\n', encoding="utf-8")
    assert datasets.ensure("book+wikija", Workspace(tmp_path), lambda _text: None) == own


def test_a_mirror_has_the_recipes_texts_that_can_be_had(
    tmp_path: Path, hub: type[_Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``gpt-0.125b`` reads arxiv, whose address answers nothing here, and openassistant."""
    monkeypatch.setattr(host, "RETRY_WAITS_S", ())
    monkeypatch.setattr(datasets, "address", _only_the_hub(datasets.address))
    said: list[str] = []
    maker = mirror_create._Maker(tmp_path, profiles.load("megatron-cpu"), Index(), said.append)
    (entry,) = maker._file_of_dataset("openassistant")
    assert (entry.path, entry.size) == ("datasets/openassistant_best_replies_train.jsonl", len(hub.content))
    assert (tmp_path / entry.path).read_bytes() == hub.content
    assert maker._file_of_dataset("arxiv") == []
    assert "dataset arxiv is left out" in said[-1]
    wanted = [getattr(job, "args", ()) for job in maker.jobs(["3.9"], "")]
    assert [name for name in ("openassistant", "arxiv", "botchan", "book+wikija") if (name,) in wanted] == [
        "openassistant", "arxiv", "botchan",
    ]  # fmt: skip


def _only_the_hub(real: Callable[..., tuple[str, str]]) -> Callable[..., tuple[str, str]]:
    def address(name: str, entry: Mapping[str, str], target: Path) -> tuple[str, str]:
        return ("http://127.0.0.1:9/nothing", "") if name == "arxiv" else real(name, entry, target)

    return address
