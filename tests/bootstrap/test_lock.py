"""`ucllm lock`: the real conda-lock over our conda and a local channel, and the real uv over local wheels."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstrap import conda, lock
from bootstrap.profiles import locks_dir
from tests.bootstrap import conda_channel, wheels
from tests.bootstrap.conftest import Tiny

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the locks are for x86_64"),
    pytest.mark.usefixtures("programs"),
]
#: A build with dots, as pytorch's are.
BUILD = "py3.9_cuda11.8_cudnn8.7.0_0"
_PROFILE = """\
profile_version = 1
description = "Locks to be made"
recipe = "botchan-tiny"
requirements = ["env.python"]

[engines]
pretrain = "torch"
finetune = "trl"

[python]
versions = ["3.11"]

[packages]
locks = ["requirements.lock"]

[machine]
machines = ["x86_64"]
glibc = "2.17"

[cuda]
version = "11.8"
driver = "520.61.05"
newest_gcc = 11
architectures = ["80"]

[conda]
version = "23.10.0"
installer = "file:///nowhere"
sha256 = ""

[conda.packages]
pytorch = "2.2.0={build}"
torchvision = "0.17.0"

[lock]
exclude_newer = "2026-11-24T00:00:00Z"
platform = "x86_64-unknown-linux-gnu"

[lock.files."requirements.lock"]
about = "All but beta."
inputs = ["requirements.in"]
without = ["bet*"]

[lock.files."beta.lock"]
about = \"\"\"
Beta alone.
Of the same inputs.\"\"\"
inputs = ["requirements.in"]
only = ["beta"]
"""


@pytest.fixture(scope="session")
def programs() -> None:
    """Skip where the programs that make locks are not installed."""
    pytest.importorskip("conda_lock")
    if not Path(sys.executable).with_name("uv").exists() and not shutil.which("uv"):
        pytest.skip("uv is not installed")


def _package(channel: Path, name: str, version: str, build: str, *depends: str) -> Path:
    text = f"stand-in for {name} in ucllm's tests"
    return conda_channel.pack(
        channel, name, version, build, {f"share/{name}": (text.encode(), 0o644)}, depends=depends, summary=text
    )


@pytest.fixture
def channel(tmp_path: Path) -> Path:
    """A channel where only the machine that the profile declares has the pytorch that is wanted."""
    folder = tmp_path / "channel"
    _package(folder, "python", "3.9.18", "h955ad1f_0", "__glibc >=2.17")
    _package(folder, "pytorch", "2.2.0", BUILD, "python 3.9.*", "pytorch-cuda 11.8.*")
    _package(folder, "pytorch-cuda", "11.8", "h7e8668a_5", "__cuda >=11.8")
    _package(folder, "torchvision", "0.17.0", "py39_cu118", "pytorch 2.2.0", "helper")
    _package(folder, "helper", "1.0", "0")
    _package(folder, "helper", "2.0", "0", "__cuda >=12")
    _package(folder, "helper", "3.0", "0", "__glibc >=2.28")
    conda_channel.index(folder)
    return folder


@pytest.fixture
def tiny(tmp_path: Path, channel: Path) -> Iterator[Tiny]:
    """A profile folder with what its locks are made of, and none of them yet."""
    made = Tiny(tmp_path, {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(tmp_path / "wheels")})
    made.lock.mkdir(parents=True)
    (made.lock / "profile.toml").write_text(_PROFILE.format(build=BUILD), encoding="utf-8")
    (made.lock / "requirements.in").write_text("alpha\nbeta\n", encoding="utf-8")
    wheels.build(tmp_path / "wheels", "alpha", "1.0", requires="gamma")
    for name in ("beta", "gamma"):
        wheels.build(tmp_path / "wheels", name, "2.0")
    _environment(made, channel.as_uri())
    yield made
    assert not [path.name for path in made.lock.iterdir() if path.name.startswith(".") or ".part" in path.name]


def _environment(tiny: Tiny, channel: str) -> None:
    text = f"channels:\n  - {channel}\ndependencies:\n  - pytorch=2.2.0={BUILD}\n  - torchvision\n"
    (tiny.lock / "environment.yml").write_text(text, encoding="utf-8")


def test_all_locks_of_a_profile_that_has_none(tiny: Tiny, channel: Path) -> None:
    assert tiny("lock", "--profile", "tiny", "--check", "--json").code == 1
    assert not (tiny.lock / conda.LOCK).exists()

    outcome = tiny("lock", "--profile", "tiny")
    assert outcome.code == 0, outcome.err
    text = (tiny.lock / conda.LOCK).read_text(encoding="utf-8")
    # What the declared machine can have: CUDA 11.8 and glibc 2.17, whatever this one has. No pip.
    assert lock.versions(conda.LOCK, text) == {
        "helper": "1.0=0",
        "python": "3.9.18=h955ad1f_0",
        "pytorch": f"2.2.0={BUILD}",
        "pytorch-cuda": "11.8=h7e8668a_5",
        "torchvision": "0.17.0=py39_cu118",
    }
    repodata = json.loads((channel / "linux-64" / "repodata.json").read_text(encoding="utf-8"))["packages"]
    urls, hashes = re.findall(r"^  url: (\S+)", text, re.MULTILINE), re.findall(r"sha256: (\w+)", text)
    assert {url.rpartition("/")[0] for url in urls} == {f"{channel.as_uri()}/linux-64"}
    assert hashes == [repodata[url.rpartition("/")[2]]["sha256"] for url in urls]
    assert "manager: pip" not in text
    assert str(tiny.root / "channel") in text
    assert "ucllm-lock-" not in text  # no temporary folder's name

    alpha, beta, gamma = (next((tiny.root / "wheels").glob(f"{name}-*")) for name in ("alpha", "beta", "gamma"))
    requirements = (tiny.lock / "requirements.lock").read_text(encoding="utf-8")
    assert requirements == "# All but beta.\n" + wheels.pin(alpha) + wheels.pin(gamma)
    assert (tiny.lock / "beta.lock").read_text(encoding="utf-8") == (
        "# Beta alone.\n# Of the same inputs.\n" + wheels.pin(beta)
    )

    before = {path.name: path.stat().st_mtime_ns for path in tiny.lock.iterdir()}
    assert tiny("lock", "--profile", str(tiny.lock), "--check").code == 0
    assert tiny("lock", "--profile", "tiny").code == 0
    assert {path.name: path.stat().st_mtime_ns for path in tiny.lock.iterdir()} == before


def test_check_names_what_differs(tiny: Tiny, channel: Path) -> None:
    assert tiny("lock", "--profile", "tiny").code == 0
    kept = {path.name: path.read_bytes() for path in tiny.lock.iterdir()}
    _package(channel, "helper", "1.1", "0")
    conda_channel.index(channel)
    wheels.build(tiny.root / "wheels", "gamma", "2.1")

    outcome = tiny("lock", "--profile", "tiny", "--check")
    assert outcome.code == 1
    assert "helper 1.0=0 → 1.1=0" in outcome.out
    assert "gamma 2.0 → 2.1" in outcome.out
    assert "Not what is made now: conda-lock.yml, requirements.lock." in outcome.err
    assert "ucllm lock --profile tiny" in outcome.err
    assert {path.name: path.read_bytes() for path in tiny.lock.iterdir()} == kept

    assert tiny("lock", "--profile", "tiny").code == 0
    assert "helper-1.1-0" in (tiny.lock / conda.LOCK).read_text(encoding="utf-8")
    assert tiny("lock", "--profile", "tiny", "--check").code == 0


def test_a_package_rebuilt_under_its_name_differs(tiny: Tiny, channel: Path) -> None:
    assert tiny("lock", "--profile", "tiny").code == 0
    conda_channel.pack(channel, "helper", "1.0", "0", {"share/other": (b"other", 0o644)})
    for index in (channel / "linux-64").glob("repodata*"):  # else the package counts as known
        index.unlink()
    conda_channel.index(channel)
    outcome = tiny("lock", "--profile", "tiny", "--check")
    assert outcome.code == 1
    assert "the same versions; other hashes or comments" in outcome.out


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/some-channel", "file:///nowhere/some-channel"])
def test_a_channel_that_cannot_be_read(tiny: Tiny, where: str) -> None:
    _environment(tiny, where)
    (tiny.lock / conda.LOCK).write_text("what was there\n", encoding="utf-8")
    outcome = tiny("lock", "--profile", "tiny", "--json")
    assert outcome.code == 3
    states = {item["file"]: item["state"] for item in outcome.json["data"]["files"]}
    assert states == {conda.LOCK: "failed", "requirements.lock": "new", "beta.lock": "new"}
    (error,) = outcome.json["errors"]
    assert error["code"] == "lock.channel"
    assert f"The conda channel {where} cannot be read." in error["message"]
    assert "Run `ucllm lock --profile tiny` where it can be reached" in error["hint"]
    assert (tiny.lock / conda.LOCK).read_text(encoding="utf-8") == "what was there\n"
    assert (tiny.lock / "requirements.lock").exists()


def test_packages_that_do_not_go_together(tiny: Tiny) -> None:
    text = (tiny.lock / "environment.yml").read_text(encoding="utf-8")
    (tiny.lock / "environment.yml").write_text(f"{text}  - helper=2.0\n", encoding="utf-8")
    outcome = tiny("lock", "--profile", "tiny")
    assert outcome.code == 3
    assert "conda-lock cannot lock" in outcome.err
    assert "__cuda >=12" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_lock_that_contradicts_the_profile(tiny: Tiny) -> None:
    path = tiny.lock / "profile.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('"0.17.0"', '"0.17.1"'), encoding="utf-8")
    outcome = tiny("lock", "--profile", "tiny")
    assert outcome.code == 3
    assert "torchvision is 0.17.0=py39_cu118, not 0.17.1" in outcome.err
    assert not (tiny.lock / conda.LOCK).exists()


def test_requirements_that_the_index_does_not_have(tiny: Tiny) -> None:
    (tiny.lock / "requirements.in").write_text("delta\n", encoding="utf-8")
    outcome = tiny("lock", "--profile", "tiny")
    assert outcome.code == 3
    assert "uv cannot lock requirements.in." in outcome.err
    assert "delta" in outcome.err
    assert (tiny.lock / conda.LOCK).exists()


def test_the_conda_that_is_named(tiny: Tiny) -> None:
    calls = tiny.root / "calls"
    named = tiny.root / "named-conda"
    named.write_text(f'#!/bin/sh\necho "$*" >> "{calls}"\nexec "{sys.executable}" "{lock.EXECUTABLE}" "$@"\n')
    named.chmod(0o755)
    assert tiny("lock", "--profile", "tiny", "--conda", str(named)).code == 0
    said = calls.read_text(encoding="utf-8")
    assert said.startswith("--version\ncreate --prefix ")
    shutil.copytree(named.parent, tiny.workspace / "miniconda3" / "bin", ignore=lambda _f, names: names)
    shutil.copy(named, tiny.workspace / "miniconda3" / "bin" / "conda")
    assert tiny("lock", "--profile", "tiny", "--check").code == 0
    assert calls.read_text(encoding="utf-8").count("create --prefix") == 2  # Miniconda's was called

    outcome = tiny("lock", "--profile", "tiny", "--conda", "no-such-conda")
    assert outcome.code == 2
    assert "There is no command no-such-conda." in outcome.err


def test_our_conda_answers_nothing_else() -> None:
    for words in (["install", "python"], ["create", "--prefix", "/nowhere", "python"]):
        done = subprocess.run([sys.executable, str(lock.EXECUTABLE), *words], capture_output=True, text=True)
        assert done.returncode == 2, done.stdout
        assert done.stderr


def test_profiles_without_locks_and_without_a_name(tiny: Tiny) -> None:
    (tiny.lock / "environment.yml").unlink()
    path = tiny.lock / "profile.toml"
    path.write_text(path.read_text(encoding="utf-8").partition("[lock]")[0], encoding="utf-8")
    outcome = tiny("lock", "--profile", "tiny")
    assert outcome.code == 0
    assert "This profile has no locks to make." in outcome.out
    assert tiny("lock", "--profile", "tinny").code == 2


@pytest.mark.parametrize("profile", ["cpu", "gcp-2024.02", "abci-2024.02", "megatron-cpu"])
def test_the_recipe_of_our_profiles_fits_their_locks(profile: str) -> None:
    recipe = lock.read(profile)
    for file, wanted in recipe.requirements.items():
        text = (locks_dir() / profile / file).read_text(encoding="utf-8")
        assert text.startswith("".join(f"# {line}\n" for line in wanted.about.splitlines()))
        names = lock.versions(file, text)
        assert names
        assert all(wanted.keeps(name) for name in names)


@pytest.mark.network
def test_the_committed_locks_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    shutil.copytree(locks_dir() / "megatron-cpu", tmp_path / "megatron-cpu")
    done = subprocess.run(
        [sys.executable, "-m", "bootstrap", "lock", "--check", "--profile", str(tmp_path / "megatron-cpu")],
        cwd=locks_dir().parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
