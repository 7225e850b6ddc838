"""The stand-in Hub against the real client: what goes up comes down, and which faults the client survives alone."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from .fake_hub import TEST_TOKEN, FakeHub

CLIENT = Path(__file__).with_name("hub_client.py")
WEIGHTS = os.urandom(1024) * (11 * 1024)  # 11 MiB: over the limit above which the Hub asks for LFS, whatever the name
FILES = {
    "README.md": b"---\nlanguage: ja\n---\n# test\n",
    "config.json": b'{"a": 1}\n',
    "notes/坊っちゃん 1.txt": "親譲りの無鉄砲で\n".encode(),
    "model.safetensors": WEIGHTS,
}


@pytest.fixture(scope="session")
def hub_python(env_python: Path) -> str:
    """A Python that has huggingface_hub, which the suite's own need not have."""
    found = subprocess.run([env_python, "-c", "import huggingface_hub"], capture_output=True, check=False)
    if found.returncode != 0:
        pytest.skip(f"huggingface_hub is not installed for {env_python}")
    return str(env_python)


@pytest.fixture
def client_2(hub_python: str) -> None:
    """For what the client does by itself since 2.x; older ones retry less (1.3.0: no cut connection at all)."""
    ask_version = "import huggingface_hub as h; print(h.__version__)"
    found = subprocess.run([hub_python, "-c", ask_version], capture_output=True, text=True, check=True).stdout.strip()
    if int(found.split(".")[0]) < 2:
        pytest.skip(f"huggingface_hub {found} retries less than 2.x")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A running server. A test fails where the server lacked a route, broke, or kept a fault that never fired."""
    with FakeHub(token="hf_test", user="tester") as server:
        yield server
    assert server.errors == []
    assert server.unknown == []
    assert server.faults.pending == 0


@dataclass
class Outcome:
    """What the child process reported."""

    ok: bool
    value: Any
    error: str
    causes: list[str]
    message: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(hub: FakeHub, hub_python: str, tmp_path: Path) -> Run:
    """Run the real client once, in a child process with a cache of its own."""

    def go(operation: str, *, token: str | None = None, env: dict[str, str] | None = None, **args: Any) -> Outcome:
        child_env = {**os.environ, **hub.env(tmp_path / f"home-{time.monotonic_ns()}", token), **(env or {})}
        argv = [hub_python, str(CLIENT), operation, json.dumps(args)]
        done = subprocess.run(argv, env=child_env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        return Outcome(
            told["ok"], told.get("value"), told.get("error", ""), told.get("causes", []), told.get("message", "")
        )

    return go


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to push: text, a name outside ASCII, a large binary file."""
    root = tmp_path / "folder"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def ask(
    hub: FakeHub, method: str, path: str, body: bytes = b"", token: str | None = TEST_TOKEN, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One plain HTTP request, for what needs no client."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


# --- what goes up comes down -----------------------------------------------------------------------------------------


def test_a_pushed_folder_reads_back_equal(hub: FakeHub, run: Run, folder: Path) -> None:
    pushed = run("push", repo="tester/name", folder=str(folder), private=True)
    assert pushed.ok, pushed.message
    repo = hub.repos["tester/name"]
    stored = repo.files
    assert stored.pop(".gitattributes")
    assert stored == FILES
    assert repo.private
    assert [commit.parent for commit in repo.commits] == [None, repo.commits[0].oid]
    assert repo.commits[-1].oid == pushed.value
    assert hub.count("^PUT /lfs/upload/") == 1, "only the weights go by LFS"
    pulled = run("pull", repo="tester/name")
    assert pulled.ok, pulled.message
    assert pulled.value == {name: sha256(data).hexdigest() for name, data in repo.files.items()}


def test_an_unchanged_folder_makes_no_second_commit(hub: FakeHub, run: Run, folder: Path) -> None:
    first = run("push", repo="tester/name", folder=str(folder))
    second = run("push", repo="tester/name", folder=str(folder))
    assert second.ok, second.message
    assert second.value == first.value
    assert len(hub.repos["tester/name"].commits) == 2
    assert hub.count("^PUT /lfs/upload/") == 1


# --- who may do what -------------------------------------------------------------------------------------------------


def test_a_private_repository_is_invisible_to_others(hub: FakeHub, run: Run) -> None:
    hub.add_repo("tester/name", {"a.txt": b"a"}, private=True)
    hub.add_token("hf_other", "other")
    for token in ("", "hf_other"):
        assert run("pull", repo="tester/name", token=token).error == "RepositoryNotFoundError"
    assert run("publish", repo="tester/name").ok
    assert not hub.repos["tester/name"].private
    assert run("pull", repo="tester/name", token="hf_other").ok


def test_a_wrong_token_is_refused(hub: FakeHub, run: Run, folder: Path) -> None:
    outcome = run("push", repo="tester/name", folder=str(folder), token="hf_wrong")
    assert outcome.error == "HfHubHTTPError"
    assert "401" in outcome.message
    assert hub.repos == {}
    assert {request.status for request in hub.requests} == {401}


def test_a_read_token_cannot_push(hub: FakeHub, run: Run, folder: Path) -> None:
    hub.add_token("hf_read", "tester", role="read")
    assert run("whoami", token="hf_read").value == "tester"
    outcome = run("push", repo="tester/name", folder=str(folder), token="hf_read")
    assert "403" in outcome.message
    assert hub.repos == {}


def test_create_says_409_where_it_exists(hub: FakeHub, run: Run) -> None:
    hub.add_repo("tester/name")
    assert run("create", repo="tester/name", exist_ok=True).value == f"{hub.url}/tester/name"
    assert "409" in run("create", repo="tester/name").message


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"repo": "tester/none", "file": "a.txt"}, "RepositoryNotFoundError"),
        ({"repo": "tester/name", "file": "b.txt"}, "EntryNotFoundError"),
        ({"repo": "tester/name", "file": "a.txt", "revision": "nope"}, "RevisionNotFoundError"),
    ],
)
def test_missing_things_are_told_apart(hub: FakeHub, run: Run, wanted: dict[str, str], error: str) -> None:
    hub.add_repo("tester/name", {"a.txt": b"a"})
    # From 1.x on the client says RemoteEntryNotFoundError, a subclass.
    assert run("download", **wanted).error.endswith(error)


# --- faults the client survives by itself ----------------------------------------------------------------------------


@pytest.mark.usefixtures("client_2")
@pytest.mark.parametrize("fault", ["503", "cut"])
def test_the_client_retries_up_to_the_commit(hub: FakeHub, run: Run, folder: Path, fault: str) -> None:
    places = ("/preupload/", "/objects/batch$", "^PUT /lfs/upload/", "^POST /lfs/verify/")
    for where in places:
        if fault == "503":
            hub.fail_next(1, 503, where)
        else:
            hub.cut_next(1, where)
    outcome = run("push", repo="tester/name", folder=str(folder))
    assert outcome.ok, outcome.message
    assert [hub.count(where) for where in places] == [2, 2, 2, 2]
    assert hub.repos["tester/name"].files["model.safetensors"] == WEIGHTS
    assert len(hub.repos["tester/name"].commits) == 2


@pytest.mark.usefixtures("client_2")
def test_with_xet_the_client_retries_the_commit_too_and_doubles_it(
    hub: FakeHub, run: Run, folder: Path, hub_python: str
) -> None:
    if subprocess.run([hub_python, "-c", "import hf_xet"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"hf_xet is not installed for {hub_python}")
    (folder / "model.safetensors").unlink()  # the stand-in has no Xet storage; the commit takes the same way without
    hub.cut_next(1, "/commit/main$", when="reply")
    outcome = run("push", repo="tester/name", folder=str(folder), env={"HF_HUB_DISABLE_XET": "0"})
    assert outcome.ok, outcome.message
    first, second = hub.repos["tester/name"].commits[1:]
    assert first.files == second.files


@pytest.mark.usefixtures("client_2")
def test_a_cut_download_resumes_where_it_stopped(hub: FakeHub, run: Run) -> None:
    large = bytes(24 * 1024 * 1024)  # half of it is more than the 10 MiB that the client writes at a time
    hub.add_repo("tester/name", {"model.safetensors": large})
    hub.cut_next(1, "^GET /tester/name/resolve/", when="body")
    assert run("download", repo="tester/name", file="model.safetensors").value == sha256(large).hexdigest()
    assert [request.status for request in hub.requests if request.method == "GET"] == [200, 206]


# --- faults it does not survive: what our own code must retry or check -----------------------------------------------


@pytest.mark.parametrize("where", ["/repos/create$", "/validate-yaml$", "/commit/main$"])
@pytest.mark.parametrize("fault", ["503", "cut"])
def test_the_client_gives_up_at_once(hub: FakeHub, run: Run, folder: Path, where: str, fault: str) -> None:
    if fault == "503":
        hub.fail_next(1, 503, where)
    else:
        hub.cut_next(1, where)
    outcome = run("push", repo="tester/name", folder=str(folder))
    assert not outcome.ok
    assert hub.count(where) == 1
    # The same call again is all it takes, and what has been uploaded is not sent twice.
    assert run("push", repo="tester/name", folder=str(folder)).ok
    assert hub.count("^PUT /lfs/upload/") == 1
    assert len(hub.repos["tester/name"].commits) == 2


def test_a_lost_answer_leaves_the_commit_behind(hub: FakeHub, run: Run, folder: Path) -> None:
    hub.cut_next(1, "/commit/main$", when="reply")
    assert not run("push", repo="tester/name", folder=str(folder)).ok
    assert len(hub.repos["tester/name"].commits) == 2, "it failed for the client, and is there all the same"
    assert run("push", repo="tester/name", folder=str(folder)).ok
    assert len(hub.repos["tester/name"].commits) == 2, "the second push sees that nothing has changed"


def test_a_tampered_upload_is_refused(hub: FakeHub, run: Run, folder: Path) -> None:
    hub.corrupt_next(1, "^PUT /lfs/upload/")
    outcome = run("push", repo="tester/name", folder=str(folder))
    assert not outcome.ok
    assert "BadRequestError" in outcome.causes
    assert len(hub.repos["tester/name"].commits) == 1, "nothing was committed"
    assert hub.repos["tester/name"].lfs_objects == {}


def test_the_client_does_not_notice_a_wrong_byte_in_a_download(hub: FakeHub, run: Run) -> None:
    hub.add_repo("tester/name", {"model.safetensors": WEIGHTS})
    hub.corrupt_next(1, "^GET /tester/name/resolve/")
    outcome = run("download", repo="tester/name", file="model.safetensors")
    assert outcome.ok
    assert outcome.value != sha256(WEIGHTS).hexdigest()


# --- the server alone, without the client ----------------------------------------------------------------------------


def test_ranges_and_headers_of_a_file(hub: FakeHub) -> None:
    repo = hub.add_repo("tester/name", {"a.txt": b"0123456789", "w.safetensors": b"weights"})
    path = "/tester/name/resolve/main/a.txt"
    status, headers, body = ask(hub, "HEAD", path)
    assert (status, headers["Content-Length"], headers["X-Repo-Commit"], body) == (200, "10", repo.commits[0].oid, b"")
    assert [ask(hub, "GET", path, Range=r)[::2] for r in ("bytes=2-4", "bytes=7-", "bytes=-2", "bytes=10-")] == [
        (206, b"234"),
        (206, b"789"),
        (206, b"89"),
        (416, b'{"error": "Range not satisfiable"}'),
    ]
    headers = ask(hub, "HEAD", "/tester/name/resolve/main/w.safetensors")[1]
    assert headers["X-Linked-Etag"] == headers["ETag"] == f'"{sha256(b"weights").hexdigest()}"'


def commit_body(*operations: dict[str, Any], **header: str) -> bytes:
    """A commit in the Hub's line format."""
    lines = [{"key": "header", "value": {"summary": "s", **header}}, *operations]
    return "\n".join(json.dumps(line) for line in lines).encode()


def test_a_commit_must_fit_what_is_there(hub: FakeHub) -> None:
    repo = hub.add_repo("tester/name", {"a.txt": b"a"})
    add = {"key": "file", "value": {"path": "b.txt", "content": "b"}}
    url = "/api/models/tester/name/commit/main"
    pointer = {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}}
    gone = {"key": "deletedFile", "value": {"path": "zz"}}
    assert ask(hub, "POST", url, commit_body(add, parentCommit="0" * 40))[0] == 412
    assert ask(hub, "POST", url, commit_body(pointer))[0] == 400, "an LFS object that was never uploaded"
    assert ask(hub, "POST", url, commit_body(gone))[0] == 404
    assert ask(hub, "POST", url, b'{"key": "file"}')[0] == 400
    assert len(repo.commits) == 1
    assert ask(hub, "POST", url, commit_body(add, parentCommit=repo.commits[0].oid))[0] == 200
    assert repo.files["b.txt"] == b"b"


def test_faults_hit_only_what_they_name_and_only_so_often(hub: FakeHub) -> None:
    hub.add_repo("tester/name", {"a.txt": b"abcd"})
    path = "/tester/name/resolve/main/a.txt"
    hub.fail_next(2, 429, "whoami", headers={"Retry-After": "1"})
    hub.corrupt_next(1, "resolve")
    hub.stall_next(1, 0.2, "/api/models/tester/name$")
    assert ask(hub, "GET", path)[2] != b"abcd"
    assert ask(hub, "GET", path)[2] == b"abcd"
    assert [ask(hub, "GET", "/api/whoami-v2")[0] for _ in range(3)] == [429, 429, 200]
    started = time.monotonic()
    assert ask(hub, "GET", "/api/models/tester/name")[0] == 200
    assert time.monotonic() - started >= 0.2
    hub.cut_next(1, "whoami")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(hub, "GET", "/api/whoami-v2")
    hub.cut_next(1, "resolve", when="body")
    with pytest.raises(http.client.IncompleteRead):
        ask(hub, "GET", path)
    faults = [request.fault for request in hub.requests]
    assert faults == ["corrupt", None, "fail", "fail", None, "stall", "cut", "cut"]
    assert [request.status for request in hub.requests][-2:] == [None, 200]


def test_closing_wakes_a_stalled_request_and_hangs_up_on_an_idle_one() -> None:
    started = time.monotonic()
    with FakeHub() as hub:
        address = hub.url.removeprefix("http://")
        idle, stalled = (http.client.HTTPConnection(address, timeout=10) for _ in range(2))
        idle.request("GET", "/api/models/tester/none")
        idle.getresponse().read()
        hub.stall_next(1, 60, "whoami")
        stalled.request("GET", "/api/whoami-v2")
        while hub.faults.pending:
            time.sleep(0.01)
    assert idle.sock.recv(1) == b""
    idle.close()
    stalled.close()
    assert time.monotonic() - started < 10


def test_an_unknown_route_is_remembered() -> None:
    with FakeHub() as hub:
        assert ask(hub, "GET", "/api/spaces-of-the-week")[0] == 404
        assert hub.unknown == ["GET /api/spaces-of-the-week"]
