"""A profile of one's own: a folder, named by its path, and what is said of one that is not right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bootstrap import profiles
from pipeline.errors import UcllmError
from tests.bootstrap.conftest import Tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "mine"
    shutil.copytree(profiles.locks_dir() / "cpu", target)
    return target


def test_it_is_recorded_by_its_path_and_found_again(healthy: Tiny) -> None:
    mine = healthy.root / "mine"
    shutil.copytree(healthy.lock, mine)
    done = healthy("setup", "--profile", str(mine), "--json", "--yes")
    assert done.code == 0, done.err
    assert healthy.doctor().json["data"]["profile"]["name"] == str(mine)
    shutil.rmtree(mine)
    gone = healthy.doctor()
    assert gone.code == 2
    assert f"There is no profile in {mine}." in gone.json["errors"][0]["message"]


def _with(key: str, value: str) -> Callable[[str], str]:
    return lambda text: "\n".join(
        f"{key} = {value}" if line.startswith(f"{key} ") else line for line in text.split("\n")
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_with("description", "5"), "description: 5 is of another kind"),
        (lambda text: text.replace("description", "describtion"), "description is missing"),
        (lambda text: text.replace('"env.packages"', '"env.nosuch"'), "there is no requirement 'env.nosuch'"),
        (lambda text: text.replace('"env.packages"', '"_pip"'), "there is no requirement '_pip'"),
        (_with("versions", "[3.11]"), "python.versions: [3.11] is of another kind"),
        (lambda text: text.replace("[machine]", '[machine]\nopen_files = "many"'), "machine.open_files: 'many'"),
        (lambda text: text.replace("[machine]", "[machine]\nopen_flies = 1"), "machine.open_flies is not known"),
    ],
)
def test_what_is_wrong_with_it_is_named(folder: Path, change: Callable[[str], str], why: str) -> None:
    path = folder / "profile.toml"
    text = path.read_text(encoding="utf-8")
    assert change(text) != text
    path.write_text(change(text), encoding="utf-8")
    with pytest.raises(UcllmError) as error:
        profiles.load(str(folder))
    assert error.value.problems[0].what == f"{path} is not a profile."
    assert why in error.value.problems[0].why


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "./" + "a" * 300, "/dev/null/x"])
def test_a_path_that_leads_nowhere(name: str) -> None:
    with pytest.raises(UcllmError):
        profiles.load(name)


def test_a_lock_that_is_no_text(folder: Path) -> None:
    (folder / "requirements.lock").write_bytes(b"\xff\xfe")
    with pytest.raises(UcllmError, match="not a profile"):
        profiles.load(str(folder))
