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


_SOURCE = '[sources.apex]\nurl = "x"\nfolder = "apex"\ntag = "v1"\ncommit = "0"\n'


def _more(text: str) -> Callable[[str], str]:
    return lambda whole: whole.replace("[machine]", f"{text}\n[machine]")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.replace("[machine]", '[machine]\nmachines = "x86_64"'), "machine.machines: 'x86_64'"),
        (
            _more('[cuda]\nversion = "1"\ndriver = "2"\nnewest_gcc = 1\narchitectures = [80]'),
            "cuda.architectures: [80]",
        ),
        (_more('[cuda]\nversion = "1"'), "cuda.newest_gcc is missing"),
        (_more('[apex]\nmodules = "apex_C"'), "apex.modules: 'apex_C'"),
        (
            _more('[conda]\nversion = "1"\ninstaller = "x"\nsha256 = "y"\n[conda.packages]\npython = 3'),
            "conda.packages",
        ),
        (_with("versions", "[]"), "python.versions: []"),
        (_with("versions", '["3.11"]\nkind = "poetry"'), "python.kind: 'poetry' is not one of venv, conda, adopt"),
        (_with("versions", '["3.11"]\nkind = ["venv"]'), "python.kind: ['venv']"),
        (_more(_SOURCE.replace('"v1"', "1")), "sources.apex.tag: 1"),
        (_more(_SOURCE.replace('commit = "0"', "")), "sources.apex.commit is missing"),
        (_more(f"{_SOURCE}branch = 'main'"), "sources.apex.branch is not known"),
        (_more("[sources]\napex = 'x'"), "sources.apex: 'x'"),
        (_more("[windows.trl]\nversions = ['<1']\nwhy = 'x'"), "windows.trl.versions"),
        (_with("glibc", '"new"'), "machine.glibc: 'new'"),
        (_with("glibc", '"2"'), "machine.glibc: '2'"),
        (
            lambda text: text.replace('"env.packages"', '"env.packages", "env.packages"'),
            "env.packages stands there more",
        ),
        (_with("locks", '"requirements.lock"'), "packages.locks: 'requirements.lock'"),
        (_with("locks", '["no.lock"]'), "/no.lock"),
        (_with("default_lock", '"no-default.lock"'), "/no-default.lock"),
        (lambda text: text.replace('"requirements.lock" =', '"requirements.lock" = "many" #'), "packages.sizes"),
        (_with("pretrain", "5"), "engines: "),
        (_with("optional", "[5]"), "optional: [5]"),
        (
            lambda text: _more('[deepspeed]\nversion = "0.12.4"')(text.replace('"env.files"', '"ops.deepspeed"')),
            "/deepspeed.lock",
        ),
        (
            lambda text: _more('[flash_attention]\nversion = "1"')(text.replace('"env.files"', '"ops.flash-attn"')),
            "/flash-attn.lock",
        ),
        (lambda _text: "requirements = 5\npython = 5\npackages = 5\ntorch = 5\nsources = 5\nmachine = 5", "sources: 5"),
    ],
)
def test_what_would_only_be_noticed_later_is_named_too(folder: Path, change: Callable[[str], str], why: str) -> None:
    test_what_is_wrong_with_it_is_named(folder, change, why)


def test_everything_that_is_wrong_is_told_at_once(folder: Path) -> None:
    path = folder / "profile.toml"
    text = _with("glibc", '"new"')(_with("versions", "[]")(path.read_text(encoding="utf-8")))
    path.write_text(text.replace("description", "describtion").replace("tmp_gb", "temp_gb"), encoding="utf-8")
    (folder / "torch.lock").unlink()
    with pytest.raises(UcllmError) as error:
        profiles.load(str(folder))
    told = error.value.problems[0].why
    for why in ("description is", "python.versions", "machine.glibc", "machine.temp_gb is not known", "/torch.lock"):
        assert why in told


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "./" + "a" * 300, "/dev/null/x"])
def test_a_path_that_leads_nowhere(name: str) -> None:
    with pytest.raises(UcllmError):
        profiles.load(name)


def test_a_lock_that_is_no_text(folder: Path) -> None:
    (folder / "requirements.lock").write_bytes(b"\xff\xfe")
    with pytest.raises(UcllmError, match="not a profile"):
        profiles.load(str(folder))
