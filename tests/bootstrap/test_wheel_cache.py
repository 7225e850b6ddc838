"""The cache of built wheels: what names an entry, what is built for it, and who else is at work in it."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bootstrap import host, mirror, profiles, wheels
from bootstrap.facts import Facts
from bootstrap.requirements import Action, load
from bootstrap.wheels import Build
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from pipeline.runs import sha256_file
from tests.bootstrap import wheels as made
from tests.bootstrap.test_sources import Place, git, place  # noqa: F401  a fixture
from tests.faults.synthetic import changed, l4_node

GCP = profiles.load("gcp-2024.02")


class Silent:
    """A :class:`bootstrap.requirements.Doing` that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def move_aside(self, path: Path) -> Path:
        raise AssertionError(path)

    def chmod(self, path: Path, mode: int) -> None:
        raise AssertionError(path, mode)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose environment has nothing but a hook, and a cache of its own."""
    found = Workspace(tmp_path / "ws")
    (found.env / "bin").mkdir(parents=True)
    (found.env / "bin" / "python").symlink_to("/bin/true")
    (found.env / "etc" / "conda" / "activate.d").mkdir(parents=True)
    monkeypatch.setenv("UCLLM_CACHE", str(tmp_path / "cache"))
    return found


def _plan(workspace: Workspace, *changes: tuple[str, object], name: str = "ops.apex") -> list[Action]:
    facts: Facts = dataclasses.replace(l4_node(GCP), workspace=str(workspace.root))
    for path, new in changes:
        facts = changed(facts, path, new)
    (wanted,) = load([name])
    assert wanted.plan
    return wanted.plan(GCP, facts, workspace)


def _entry(workspace: Workspace, *changes: tuple[str, object], name: str = "ops.apex") -> str:
    """The folder of the cache that a build goes to."""
    command = _plan(workspace, *changes, name=name)[-1].commands[0]
    return command.split()[-1].removesuffix("/*.whl")


@pytest.mark.parametrize("name", ["ops.apex", "ops.deepspeed", "ops.flash-attn"])
@pytest.mark.parametrize(
    "change",
    [
        ("env.torch.cxx11_abi", True),
        ("env.torch.version", "2.2.1"),
        ("env.version", "3.10.1"),
        ("tools.programs.gcc.version", "9.4.0"),
        ("tools.programs.g++.version", "9.4.0"),
        ("tools.programs.nvcc.version", "11.7.64"),
        ("machine.cpu", "another"),
    ],
)
def test_what_decides_what_comes_out_names_the_entry(
    workspace: Workspace, name: str, change: tuple[str, object]
) -> None:
    assert _entry(workspace, name=name) == _entry(workspace, name=name)
    assert _entry(workspace, name=name) != _entry(workspace, change, name=name)


@pytest.mark.parametrize("variable", ["CC", "CXX", "NVCC_CCBIN", "CUDAHOSTCXX", "CXXFLAGS", "NVCC_PREPEND_FLAGS"])
def test_compilers_that_the_shell_or_a_hook_chooses_name_the_entry(
    workspace: Workspace, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    without = _entry(workspace)
    monkeypatch.setenv(variable, "mine")
    assert _entry(workspace) != without
    monkeypatch.delenv(variable)
    hook = workspace.env / "etc" / "conda" / "activate.d" / "compilers.sh"
    hook.write_text(f"export {variable}=the-hooks\n", encoding="utf-8")
    hooked = _entry(workspace)
    assert hooked != without
    monkeypatch.setenv(variable, "mine")  # the hook has the last word, as in the build
    assert _entry(workspace) == hooked


def test_what_is_python_only_is_the_same_for_every_compiler(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = _entry(workspace, name="build.megatron")
    monkeypatch.setenv("CXXFLAGS", "-O3")
    assert _entry(workspace, name="build.megatron") == entry


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("env.version", ""), "Python"),
        (("env.torch", None), "torch"),
        (("tools.programs.g++.version", ""), "g++"),
        (("tools.programs.nvcc.version", ""), "nvcc"),
    ],
)
def test_nothing_is_built_for_an_unknown_version(workspace: Workspace, change: tuple[str, object], what: str) -> None:
    for action in _plan(workspace, change):
        with pytest.raises(UcllmError, match="apex is not built") as raised:
            action.act(Silent())
        assert what in raised.value.problems[0].what
    assert not (workspace.state / "cache").exists()


def test_a_cached_wheel_is_installed_with_its_folder_named(workspace: Workspace) -> None:
    folder = Path(_entry(workspace))
    _keep(folder)
    (action,) = _plan(workspace)
    assert action.kept == str(folder)


def _keep(folder: Path) -> Path:
    """An entry of the cache, with a wheel that is whole."""
    wheel = made.build(folder, "apex", "0.1")
    told = {"name": "apex", "wheel": wheel.name, "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(), "inputs": {}}
    (folder / "build.json").write_text(json.dumps(told), encoding="utf-8")
    return wheel


def _staged(here: Place) -> None:
    (here.path / "code.py").write_text("value = 'staged'\n", encoding="utf-8")
    git("-C", here.path, "add", "-A")


def _another_commit(here: Place) -> None:
    git("-C", here.path, "checkout", "-q", "--detach", here.other)


def _no_index(here: Place) -> None:
    (here.path / ".git" / "index").unlink()


@pytest.mark.parametrize("change", [_staged, _another_commit, _no_index])
def test_the_pinned_commit_is_built_whatever_is_checked_out(
    place: Place,  # noqa: F811  a fixture
    change: Callable[[Place], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place.fix()
    change(place)
    index = place.path / ".git" / "index"
    before = index.read_bytes() if index.exists() else None
    monkeypatch.setenv("GIT_INDEX_FILE", str(place.origin / ".git" / "index"))
    target = wheels.copy_of(place.path, place.source.commit, place.workspace.root / "copy")
    assert (target / "code.py").read_text(encoding="utf-8") == "value = 1\n"
    assert sorted(path.name for path in target.iterdir()) == [".gitignore", "code.py", "file 0.txt", "file 1.txt"]
    assert (index.read_bytes() if index.exists() else None) == before
    assert sorted(path.name for path in place.workspace.root.iterdir()) == [".ucllm", "apex", "copy"]


def test_a_checkout_that_lacks_the_commit(place: Place) -> None:  # noqa: F811  a fixture
    place.fix()
    with pytest.raises(UcllmError, match="cannot be copied"):
        wheels.copy_of(place.path, "0" * 40, place.workspace.root / "copy")


def _fill(part: Path) -> None:
    _keep(part)


def _build(workspace: Workspace) -> Build:
    return Build("apex", {"source": "x"}, workspace.root)


def _built(workspace: Workspace) -> Path:
    """What comes out where the cache has it: nothing here can be compiled."""
    return wheels.build(_build(workspace), workspace, workspace.state / "log.txt", Silent(), {})


@pytest.fixture
def mirrored(workspace: Workspace, tmp_path: Path) -> Workspace:
    """The same, with a mirror that has the built wheel."""
    folder = tmp_path / "mirror" / "built" / _build(workspace).folders[0].name
    _keep(folder)
    files = [
        mirror.Entry("built", "apex", f"built/{folder.name}/{path.name}", sha256_file(path), 1, "")
        for path in folder.iterdir()
    ]
    data = {"mirror_version": mirror.VERSION, "profiles": {}, "files": [dataclasses.asdict(item) for item in files]}
    (tmp_path / "mirror" / mirror.INDEX).write_text(json.dumps(data), encoding="utf-8")
    mirror.index.cache_clear()
    return dataclasses.replace(workspace, mirror=str(tmp_path / "mirror"))


def test_a_damaged_entry_is_fetched_again(mirrored: Workspace) -> None:
    wheel = _built(mirrored)
    wheel.write_bytes(b"damaged")
    assert _built(mirrored) == wheel
    assert wheels.whole(wheel.parent) == wheel


def test_a_full_disk_below_the_shared_cache_is_no_end(mirrored: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    write = host._write

    def full(stream: object, block: bytes, part: Path) -> None:
        if "cache/wheels" in str(part) and ".ucllm" not in str(part):
            raise host.not_writable(part, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part)))
        write(stream, block, part)  # type: ignore[arg-type]

    monkeypatch.setattr(host, "_write", full)
    assert _built(mirrored).is_relative_to(mirrored.state)


def test_two_that_tidy_up_and_build_at_a_time(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another process takes away or puts there between two of our steps, the entry is whole in the end."""
    folder = workspace.root / "wheels" / "apex-1"
    stale = folder.parent / "apex-0.x.part"
    stale.mkdir(parents=True)
    folder.mkdir()  # damaged: nothing is in it
    stat, rename = Path.stat, Path.rename

    def gone(path: Path, **more: bool) -> os.stat_result:
        if path == stale:
            shutil.rmtree(path, ignore_errors=True)
        return stat(path, **more)

    def faster(path: Path, target: Path | str) -> Path:
        if path == folder:
            folder.rmdir()
        elif Path(target) == folder:
            _keep(folder)
        return rename(path, target)

    monkeypatch.setattr(Path, "stat", gone)
    monkeypatch.setattr(Path, "rename", faster)
    wheels._enter(folder, _fill)
    assert wheels.whole(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["apex-1"]


def test_what_a_killed_build_left_is_removed_a_day_later(workspace: Workspace) -> None:
    folder = workspace.root / "wheels" / "apex-1"
    for name, age in (("old", 2 * 86400), ("new", 0)):
        part = folder.parent / f"{name}.part"
        part.mkdir(parents=True)
        os.utime(part, (time.time() - age,) * 2)
    wheels._enter(folder, _fill)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["apex-1", "new.part"]
