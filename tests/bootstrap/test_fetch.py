"""`host.fetch` against a server that cuts, stalls and lies."""

from __future__ import annotations

import errno
import hashlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstrap import host
from pipeline.errors import UcllmError
from tests.bootstrap.server import Faulty, serving

BODY = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "RETRY_WAITS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(host, "TIMEOUT_S", 0.4)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Faulty]:
    with serving(Faulty({"/file": BODY})) as faulty:
        yield faulty


def _fetch(server: Faulty, target: Path, sha256: str = SHA256) -> None:
    host.fetch(f"{server.url}/file", target, sha256)


def _refused(server: Faulty, target: Path, sha256: str = SHA256) -> UcllmError:
    with pytest.raises(UcllmError) as caught:
        _fetch(server, target, sha256)
    return caught.value


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_plain(server: Faulty, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    target = tmp_path / "new" / "file"
    host.fetch(f"{server.url}/file", target, SHA256, progress=lambda done, total: told.append((done, total)))
    assert target.read_bytes() == BODY
    assert _names(target.parent) == ["file"]
    assert told[-1] == (len(BODY), len(BODY))


def test_a_cut_connection_is_resumed_where_it_broke(server: Faulty, tmp_path: Path) -> None:
    server.faults = ["cut 100000", "cut 50000"]
    _fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.seen == [("/file", ""), ("/file", "bytes=100000-"), ("/file", "bytes=150000-")]


def test_a_line_that_breaks_often_but_moves_on_is_no_reason_to_give_up(server: Faulty, tmp_path: Path) -> None:
    server.faults = ["cut 1000"] * 12
    _fetch(server, tmp_path / "file")
    assert len(server.seen) == 13


def test_what_another_call_left_is_continued(server: Faulty, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(BODY[:300])
    _fetch(server, tmp_path / "file")
    assert server.seen == [("/file", "bytes=300-")]
    assert (tmp_path / "file").read_bytes() == BODY


def test_killed_before_the_rename_nothing_is_fetched_again(server: Faulty, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(BODY)
    _fetch(server, tmp_path / "file")
    assert server.seen == []
    assert _names(tmp_path) == ["file"]


def test_a_server_without_ranges_starts_again(server: Faulty, tmp_path: Path) -> None:
    server.ranges = False
    server.faults = ["cut 100000"]
    _fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_503_twice_then_fine(server: Faulty, tmp_path: Path) -> None:
    server.faults = ["503", "503"]
    _fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_503_for_ever_is_told_with_its_number(server: Faulty, tmp_path: Path) -> None:
    server.faults = ["503"] * 9
    error = _refused(server, tmp_path / "file")
    assert error.problems[0].code == "fetch.failed"
    assert "503" in error.problems[0].why
    assert len(server.seen) == 4
    assert _names(tmp_path) == []


def test_404_is_not_tried_again(server: Faulty, tmp_path: Path) -> None:
    server.files.clear()
    assert "404" in _refused(server, tmp_path / "file").problems[0].why
    assert len(server.seen) == 1


def test_a_stall_is_a_broken_connection(server: Faulty, tmp_path: Path) -> None:
    server.faults = ["stall 1000"]
    _fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.seen[1] == ("/file", "bytes=1000-")


def test_wrong_bytes_are_refused_and_nothing_is_left(server: Faulty, tmp_path: Path) -> None:
    server.files["/file"] = BODY[:-1] + b"!"
    error = _refused(server, tmp_path / "file")
    assert error.problems[0].code == "fetch.wrong-hash"
    assert SHA256 in error.problems[0].why
    assert _names(tmp_path) == []


def test_a_part_longer_than_the_file_is_started_again(server: Faulty, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(BODY + b"more")
    _fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert _names(tmp_path) == ["file"]


def test_a_file_address(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(BODY)
    (tmp_path / "file.part").write_bytes(b"stale")
    host.fetch(source.as_uri(), tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == BODY
    with pytest.raises(UcllmError) as caught:
        host.fetch((tmp_path / "nothing").as_uri(), tmp_path / "other", SHA256)
    assert "No such file" in caught.value.problems[0].why


def test_a_full_disk_is_not_a_broken_connection(
    server: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_stream: io.BufferedWriter, _block: bytes, part: Path) -> None:
        raise host.not_writable(part, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(host, "_write", full)
    error = _refused(server, tmp_path / "file")
    assert (error.problems[0].code, error.problems[0].why) == ("fetch.not-writable", "No space left on device")
    assert len(server.seen) == 1


def test_a_folder_that_cannot_be_made(server: Faulty, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert _refused(server, tmp_path / "file" / "x").problems[0].code == "fetch.not-writable"


def test_two_at_once_do_not_mix_their_bytes(server: Faulty, tmp_path: Path) -> None:
    server.faults = ["stall 5000"]
    failures: list[Exception] = []

    def get() -> None:
        try:
            _fetch(server, tmp_path / "file")
        except UcllmError as error:
            failures.append(error)

    threads = [threading.Thread(target=get) for _number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (tmp_path / "file").read_bytes() == BODY
    assert len(server.seen) == 2, "the others waited and used what the first had fetched"
    assert _names(tmp_path) == ["file"]


def test_a_login_in_the_address_is_used_and_never_told(server: Faulty, tmp_path: Path) -> None:
    server.login = "Basic bWU6czNjcmV0"
    address = server.url.replace("//", "//me:s3cret@")
    host.fetch(f"{address}/file", tmp_path / "file", SHA256)
    with pytest.raises(UcllmError) as caught:
        host.fetch(f"{address}/none", tmp_path / "other", SHA256)
    assert "s3cret" not in str(caught.value.problems)
