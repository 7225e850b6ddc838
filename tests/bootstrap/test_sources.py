"""Checkouts: real git repositories, broken in the ways they break, found, mended, and put back."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootstrap import profiles
from bootstrap.facts import Checkout, Facts, SourcesFacts, collect
from bootstrap.facts import sources as reader
from bootstrap.findings import Finding
from bootstrap.journal import Journal, Recorder, fixes, undo
from bootstrap.profiles import Profile, Source
from bootstrap.requirements import Requirement, load
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError

ALL = tuple(collect.TIMEOUTS_S)
IDS = ("source.megatron", "source.apex", "source.llm-jp-sft")


def git(*args: str | Path) -> str:
    """Run git as somebody; returns what it printed."""
    who = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, *map(str, args)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@dataclass
class Place:
    """A workspace, a profile with one source, and where it comes from."""

    workspace: Workspace
    profile: Profile
    origin: Path
    other: str
    said: list[str] = dataclasses.field(default_factory=list)

    @property
    def source(self) -> Source:
        """The source."""
        return self.profile.sources["apex"]

    @property
    def path(self) -> Path:
        """Its checkout."""
        return self.workspace.root / self.source.folder

    @property
    def requirement(self) -> Requirement:
        """The requirement on it."""
        return load(["source.apex"])[0]

    def facts(self) -> Facts:
        """The facts, really collected."""
        return collect.collect(self.profile, self.workspace, ("sources",))

    def check(self) -> Finding:
        """What the check finds now."""
        return self.requirement.check(self.profile, self.facts())

    def fix(self) -> None:
        """Plan and do it."""
        journal = Journal(self.workspace)
        doing = Recorder(journal, journal.next_fix(), "source.apex", self.said.append)
        assert self.requirement.plan
        for action in self.requirement.plan(self.profile, self.facts(), self.workspace):
            assert action.commands
            action.act(doing)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A repository with three commits, the second of them tagged and pinned; nothing cloned yet."""
    origin = tmp_path / "origin"
    git("init", "-q", origin)
    commits = []
    for number in range(3):
        (origin / "code.py").write_text(f"value = {number}\n", encoding="utf-8")
        (origin / f"file {number}.txt").write_text("x\n" * number, encoding="utf-8")
        (origin / ".gitignore").write_text("build/\n", encoding="utf-8")
        git("-C", origin, "add", "-A")
        git("-C", origin, "commit", "-qm", str(number))
        commits.append(git("-C", origin, "rev-parse", "HEAD"))
    git("-C", origin, "tag", "v1", commits[1])
    source = Source(str(origin), "apex", "v1", commits[1])
    profile = dataclasses.replace(profiles.load("cpu"), sources={"apex": source})
    workspace = Workspace(tmp_path / "ws")
    workspace.root.mkdir()
    return Place(workspace, profile, origin, commits[2])


@pytest.fixture
def cloned(place: Place) -> Place:
    """The same, cloned by the fix."""
    assert place.check().status == "fail"
    place.fix()
    assert place.check().status == "ok"
    return place


def test_a_clone_is_at_the_commit_and_leaves_nothing_beside_it(cloned: Place) -> None:
    assert git("-C", cloned.path, "rev-parse", "HEAD") == cloned.source.commit
    assert sorted(path.name for path in cloned.workspace.root.iterdir()) == [".ucllm", "apex"]
    assert not cloned.workspace.backups.exists()


def _foreign(place: Place) -> None:
    place.path.rename(place.path.with_name("was"))
    place.path.mkdir()
    (place.path / "mine.txt").write_text("mine", encoding="utf-8")


def _a_file(place: Place) -> None:
    place.path.rename(place.path.with_name("was"))
    place.path.write_text("mine", encoding="utf-8")


def _no_head(place: Place) -> None:
    """What a clone leaves that was killed while it fetched."""
    place.path.rename(place.path.with_name("was"))
    git("init", "-q", place.path)
    (place.path / ".git" / "objects" / "pack" / "tmp_pack_x").write_bytes(b"PACK")


def _no_git(place: Place) -> None:
    """A `.git` folder without anything in it; the workspace itself lies in a repository, which must not answer."""
    git("init", "-q", place.workspace.root)
    for path in (place.path / ".git").iterdir():
        path.rename(place.workspace.root / path.name)


def _no_index(place: Place) -> None:
    (place.path / ".git" / "index").unlink()


def _missing_object(place: Place) -> None:
    blob = git("-C", place.path, "rev-parse", "HEAD:code.py")
    pack = next((place.path / ".git" / "objects" / "pack").glob("*.pack"), None)
    if pack:
        moved = place.workspace.root / pack.name
        pack.rename(moved)
        pack.with_suffix(".idx").unlink()
        with moved.open("rb") as stream:
            subprocess.run(["git", "-C", place.path, "unpack-objects", "-q"], stdin=stream, check=True)
    (place.path / ".git" / "objects" / blob[:2] / blob[2:]).unlink()


def _another_commit(place: Place) -> None:
    git("-C", place.path, "checkout", "-q", "--detach", place.other)


def _another_commit_not_fetched(place: Place) -> None:
    """A shallow clone of the newest commit, which lacks the pinned one."""
    place.path.rename(place.path.with_name("was"))
    git("clone", "-q", "--depth", "1", place.origin.as_uri(), place.path)


def _moved_tag(place: Place) -> None:
    git("-C", place.path, "tag", "-f", "v1", place.other)


def _dirty(place: Place) -> None:
    (place.path / "code.py").write_text("value = 'mine'\n", encoding="utf-8")


def _staged(place: Place) -> None:
    git("-C", place.path, "rm", "-q", "file 1.txt")


FAULTS: list[tuple[Callable[[Place], None], str, bool]] = [
    (_foreign, "not a git checkout", True),
    (_a_file, "not a git checkout", True),
    (_no_head, "interrupted or is damaged", True),
    (_no_git, "interrupted or is damaged", True),
    (_no_index, "interrupted or is damaged", True),
    (_missing_object, "interrupted or is damaged", True),
    (_another_commit, "another commit", False),
    (_another_commit_not_fetched, "another commit", False),
    (_moved_tag, "tag was moved", False),
    (_dirty, "Tracked files were changed", True),
    (_staged, "Tracked files were changed", True),
]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, or the file itself."""
    files = [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("fault", "words", "kept"), FAULTS, ids=[fault.__name__ for fault, _w, _k in FAULTS])
def test_fault(cloned: Place, fault: Callable[[Place], None], words: str, kept: bool) -> None:
    fault(cloned)
    broken = content(cloned.path)
    found = cloned.check()
    assert (found.status, words in found.summary) == ("fail", True), found
    assert found.remedy
    assert found.remedy.automatic
    assert found.remedy.commands
    assert content(cloned.path) == broken, "looking writes nothing"

    cloned.fix()
    assert cloned.check().status == "ok"
    assert git("-C", cloned.path, "status", "--porcelain") == ""
    assert git("-C", cloned.path, "rev-parse", "HEAD") == cloned.source.commit
    assert git("-C", cloned.path, "for-each-ref", "--format=%(objectname)", "refs/tags") in ("", cloned.source.commit)
    backups = list(cloned.workspace.backups.iterdir()) if cloned.workspace.backups.exists() else []
    assert len(backups) == kept
    if kept:
        assert content(backups[0]) == broken
        assert str(backups[0]) in "\n".join(cloned.said)
        undo(Journal(cloned.workspace), fixes(Journal(cloned.workspace))[-1])
        assert content(cloned.path) == broken
        assert cloned.check().status == "fail"


def test_build_artefacts_are_fine(cloned: Place) -> None:
    (cloned.path / "build").mkdir()
    (cloned.path / "build" / "a.so").touch()
    (cloned.path / "x.egg-info").touch()
    assert cloned.check().status == "ok"


def test_no_tag_is_fine(cloned: Place) -> None:
    git("-C", cloned.path, "tag", "-d", "v1")
    assert cloned.check().status == "ok"


def test_a_tag_moved_at_the_source_changes_nothing(place: Place) -> None:
    """The commit decides; the clone gets the moved tag, and the next look puts it back."""
    git("-C", place.origin, "tag", "-f", "v1", place.other)
    place.fix()
    assert git("-C", place.path, "rev-parse", "HEAD") == place.source.commit
    place.fix()
    assert place.check().status == "ok"
    assert place.other in "\n".join(place.said)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Say nothing: pytest shows what matters."""


@pytest.fixture(params=["file", "http"])
def published(place: Place, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The same repository by its address: of a file, or of a web server that knows nothing of git."""
    if request.param == "file":
        yield dataclasses.replace(place, profile=_from(place, place.origin.as_uri()))
        return
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield dataclasses.replace(
            place, profile=_from(place, f"http://127.0.0.1:{server.server_port}/{place.origin.name}/.git")
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _from(place: Place, url: str) -> Profile:
    return dataclasses.replace(place.profile, sources={"apex": dataclasses.replace(place.source, url=url)})


def _publish(place: Place) -> None:
    """What a plain web server needs beside the repository itself."""
    git("-C", place.origin, "update-server-info")


def test_a_moved_tag_is_refused_and_the_commit_stays(published: Place) -> None:
    git("-C", published.origin, "tag", "-f", "v1", published.other)
    _publish(published)
    published.fix()
    assert git("-C", published.path, "rev-parse", "HEAD") == published.source.commit
    assert (published.path / "code.py").read_text(encoding="utf-8") == "value = 1\n"
    found = published.check()
    assert (found.status, found.summary) == ("fail", "Its tag was moved.")
    assert f"v1 is {published.other}" in found.evidence
    published.fix()
    assert published.check().status == "ok"


def test_a_tag_that_leads_to_another_history_is_refused(published: Place) -> None:
    """The pinned commit is gone, and only a tag of its name is left: nothing of it gets in the workspace."""
    git("-C", published.origin, "checkout", "-q", "--orphan", "rewritten")
    git("-C", published.origin, "commit", "-qm", "another history")
    git("-C", published.origin, "branch", "-D", "main")
    git("-C", published.origin, "tag", "-f", "v1")
    git("-C", published.origin, "reflog", "expire", "--expire=now", "--all")
    git("-C", published.origin, "gc", "-q", "--prune=now")
    _publish(published)
    with pytest.raises(UcllmError) as raised:
        published.fix()
    (problem,) = raised.value.problems
    assert problem.code == "source.no-commit"
    assert problem.what == f"{published.source.url} has no commit {published.source.commit}."
    assert not published.path.exists()


def test_looking_runs_and_writes_nothing(cloned: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = cloned.workspace.root / "ran"
    monitor = cloned.path / ".git" / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {trap}\n", encoding="utf-8")
    monitor.chmod(0o755)
    git("-C", cloned.path, "config", "core.fsmonitor", monitor)
    (cloned.path / "code.py").touch()  # makes `git status` want to write its index
    monkeypatch.setenv("GIT_DIR", str(cloned.origin / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(cloned.origin / ".git" / "index"))
    index = (cloned.path / ".git" / "index").stat().st_mtime_ns
    assert cloned.check().status == "ok"
    assert not trap.exists()
    assert (cloned.path / ".git" / "index").stat().st_mtime_ns == index


def test_a_killed_clone_of_ours_is_in_nobodys_way(place: Place) -> None:
    part = place.path.with_name(".apex.ucllm-part")
    part.mkdir()
    (part / "half").touch()
    place.fix()
    assert place.check().status == "ok"
    assert not part.exists()


def test_a_source_that_cannot_be_reached_leaves_the_old_folder_where_it_is(cloned: Place) -> None:
    _dirty(cloned)
    cloned.origin.rename(cloned.origin.with_name("gone"))
    with pytest.raises(UcllmError) as raised:
        cloned.fix()
    assert raised.value.problems[0].code == "source.git-failed"
    assert "value = 'mine'" in (cloned.path / "code.py").read_text(encoding="utf-8")


def test_without_git_it_is_unknown(cloned: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cloned.check().status == "unknown"
    assert cloned.requirement.plan
    assert cloned.requirement.plan(cloned.profile, cloned.facts(), cloned.workspace) == []


def test_git_that_hangs_is_unknown(cloned: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = cloned.workspace.root / "bin"
    commands.mkdir()
    (commands / "git").write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    (commands / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.setattr(reader, "TIMEOUT_S", 0.3)
    found = cloned.check()
    assert (found.status, found.remedy) == ("unknown", None)


@pytest.mark.parametrize("requirement_id", IDS)
def test_composed(requirement_id: str) -> None:
    (requirement,) = load([requirement_id])
    assert requirement.id == requirement_id
    key = requirement_id.removeprefix("source.")
    source = Source("/origin", key, "v1", "a" * 40)
    profile = dataclasses.replace(profiles.load("cpu"), sources={key: source})

    def status(found: Checkout | None) -> str:
        checkouts = {} if found is None else {key: found}
        facts = Facts("/w", sources=SourcesFacts(checkouts), collected=ALL)
        finding = requirement.check(profile, facts)
        assert finding.summary
        assert finding.evidence
        return finding.status

    good = Checkout(f"/w/{key}", "ready", "a" * 40, "a" * 40)
    assert status(good) == "ok"
    assert status(dataclasses.replace(good, tag_commit="b" * 40)) == "fail"
    assert status(dataclasses.replace(good, head="b" * 40)) == "fail"
    assert status(dataclasses.replace(good, changed=("x",) * 9)) == "fail"
    assert status(dataclasses.replace(good, head="", error="fatal: detected dubious ownership in …")) == "unknown"
    assert status(None) == "unknown"
    assert requirement.check(profiles.load("cpu"), Facts("/w", collected=ALL)).status == "skipped"
