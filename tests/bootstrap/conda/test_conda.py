"""Setup of a conda environment from a local channel: a real Python, stand-ins for pytorch, CUDA and Miniconda."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootstrap import conda
from bootstrap.profiles import locks_dir
from tests.bootstrap import conda_channel
from tests.bootstrap.conda_channel import PACKAGES, SUBDIR
from tests.bootstrap.conda_workspace import run, setup, write
from tests.bootstrap.conftest import Outcome, Tiny, content, stamps
from tests.bootstrap.server import Faulty, serving

PYTHON = f"python-{PACKAGES['python'].replace('=', '-')}.tar.bz2"


@contextmanager
def _reached(tiny_root: Path, conda_made: Path, by: str) -> Iterator[tuple[Tiny, Callable[[str, bytes | None], None]]]:
    """The profile over ``file`` or ``http``, and how to change a file of the channel (``None``: it is gone)."""
    if by == "file":
        tiny = write(tiny_root, conda_made)

        def change(name: str, body: bytes | None) -> None:
            path = tiny_root / name
            path.unlink() if body is None else path.write_bytes(body)

        yield tiny, change
        return
    served = {f"/{path.relative_to(conda_made)}": path.read_bytes() for path in conda_made.rglob("*") if path.is_file()}
    with serving(Faulty({**served})) as server:
        tiny = write(
            tiny_root, conda_made, base=f"{server.url}/channel", installer=f"{server.url}/standin_miniconda.sh"
        )

        def replace(name: str, body: bytes | None) -> None:
            if body is None:
                del server.files[f"/{name}"]
            else:
                server.files[f"/{name}"] = body

        yield tiny, replace


def _flipped(body: bytes) -> bytes:
    return body[:-40] + bytes([body[-40] ^ 1]) + body[-39:]


def test_from_nothing_to_healthy(conda_finished: Path) -> None:
    tiny = Tiny(conda_finished)
    outcome = tiny.doctor("--deep")
    assert outcome.code == 0, outcome.out + outcome.err
    # This machine may have another nvcc, which comes first in this shell.
    assert {status for name, status in outcome.statuses.items() if name != "env.nvcc"} == {"ok"}
    # All of Python is the environment's own: also its shared library.
    code = (
        "import ssl, ctypes, sqlite3, torch, torchaudio, alpha, sys;"
        "print(sys.prefix, sys.base_prefix, torch.__file__);"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libpython' in line})"
    )
    for word in run(tiny, code).split():
        assert word.startswith(str(tiny.env))
    record = json.loads(next((tiny.env / "conda-meta").glob("pytorch-2.2.0-*.json")).read_text(encoding="utf-8"))
    assert record["url"] == f"{(conda_finished / 'channel').as_uri()}/{SUBDIR}/pytorch-2.2.0-standin_0.tar.bz2"
    assert "stand-in" in record["license"]
    said = (conda_finished / "said.txt").read_text(encoding="utf-8")
    assert "no conda-lock.yml: its exact versions came to 6 packages" in said
    packages = next(item for item in tiny.doctor().json["data"]["findings"] if item["id"] == "env.conda-packages")
    assert "the profile has no complete lock" in " ".join(packages["evidence"])


def test_a_second_setup_does_nothing(conda_finished: Path) -> None:
    tiny = Tiny(conda_finished)
    before = stamps(tiny.workspace)
    outcome = setup(tiny)
    assert outcome.code == 0
    assert outcome.json["data"]["actions"] == []
    assert stamps(tiny.workspace) == before


def test_hooks_under_conda_activate(conda_finished: Path) -> None:
    env, sh = conda_finished / "ws" / ".venv", conda_finished / "ws" / "miniconda3" / "etc" / "profile.d" / "conda.sh"
    script = f"""
        set -eu
        unset LD_LIBRARY_PATH CONDA_PREFIX || true
        . {sh}
        conda activate {env}
        echo "$LD_LIBRARY_PATH" "$(command -v python)" "$(nvcc --version)"
        conda activate {env}
        echo "$LD_LIBRARY_PATH"
        conda deactivate
        conda deactivate
        echo "${{LD_LIBRARY_PATH-unset}} ${{CONDA_PREFIX-unset}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    first, second, last = done.stdout.splitlines()
    assert first.startswith(f"{env}/lib {env}/bin/python Cuda compilation tools, release 11.8")
    assert second == f"{env}/lib"
    assert last == "unset unset"


def _error(outcome: Outcome) -> str:
    assert outcome.code == 10, outcome.out + outcome.err
    return " ".join(" ".join(str(part) for part in error.values()) for error in outcome.json["errors"])


@pytest.mark.parametrize("by", ["file", pytest.param("http", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("tampered", f"{PYTHON} is not the file it should be"),
        ("truncated", f"{PYTHON} is not the file it should be"),
        ("missing", f"Cannot download {PYTHON}"),
    ],
)
def test_a_package_that_is_not_the_locked_one(
    tmp_path: Path, conda_made: Path, by: str, fault: str, sentence: str
) -> None:
    with _reached(tmp_path, conda_made, by) as (tiny, change):
        name = f"channel/{SUBDIR}/{PYTHON}"
        right = (conda_made / name).read_bytes()
        change(name, {"tampered": _flipped(right), "truncated": right[:-1000], "missing": None}[fault])
        assert sentence in _error(setup(tiny))
        assert not tiny.env.exists()
        assert not [*tiny.workspace.rglob("*.tar.bz2")]


@pytest.mark.parametrize("by", [pytest.param("file", marks=pytest.mark.slow), "http"])
def test_a_wrong_hash_in_the_lock(tmp_path: Path, conda_made: Path, by: str) -> None:
    with _reached(tmp_path, conda_made, by) as (tiny, change):
        base = re.search(r'channels = \["([^"]*)"', (tmp_path / "profile" / "profile.toml").read_text())
        assert base
        where = base[1] if by == "http" else (tmp_path / "channel").as_uri()
        conda_channel.write_lock(tmp_path / "profile", conda_made / "channel", base=where)
        lock = tmp_path / "profile" / "conda-lock.yml"
        right = hashlib.sha256((conda_made / "channel" / SUBDIR / PYTHON).read_bytes()).hexdigest()
        good = lock.read_text(encoding="utf-8")
        lock.write_text(good.replace(right, "0" * 64), encoding="utf-8")
        said = _error(setup(tiny))
        assert f"{PYTHON} is not the file it should be" in said
        assert right in said
        assert not tiny.env.exists()
        # Nobody solves where there is a lock: the channel's index is not needed.
        change(f"channel/{SUBDIR}/repodata.json", None)
        lock.write_text(good, encoding="utf-8")
        outcome = setup(tiny)
        assert outcome.code == 0, outcome.out + outcome.err
        packages = next(item for item in outcome.json["data"]["findings"] if item["id"] == "env.conda-packages")
        assert "and with 6 packages of the profile's lock" in packages["evidence"]


@pytest.mark.parametrize("by", ["file", "http"])
def test_an_installer_with_one_byte_changed_never_runs(tmp_path: Path, conda_made: Path, by: str) -> None:
    with _reached(tmp_path, conda_made, by) as (tiny, change):
        change("standin_miniconda.sh", _flipped((conda_made / "standin_miniconda.sh").read_bytes()))
        assert "standin_miniconda.sh is not the file it should be" in _error(setup(tiny))
        assert not (tiny.workspace / "miniconda3").exists()
        assert not tiny.env.exists()


def test_a_tampered_package_leaves_a_working_environment_as_it_is(conda_healthy: Tiny) -> None:
    shutil.rmtree(conda_healthy.workspace / ".ucllm" / "cache")
    next((conda_healthy.env / "conda-meta").glob("pytorch-2.2.0-*.json")).unlink()
    archive = conda_healthy.root / "channel" / SUBDIR / "pytorch-2.2.0-standin_0.tar.bz2"
    archive.write_bytes(_flipped(archive.read_bytes()))
    before = content(conda_healthy.env)
    assert "pytorch-2.2.0-standin_0.tar.bz2 is not the file it should be" in _error(setup(conda_healthy))
    assert content(conda_healthy.env) == before


def test_what_cannot_be_resolved_is_named(conda_fresh: Tiny) -> None:
    profile = conda_fresh.root / "profile" / "profile.toml"
    text = profile.read_text(encoding="utf-8")
    profile.write_text(text.replace('pytorch = "2.2.0', 'pytorch = "2.9.0'), encoding="utf-8")
    said = _error(setup(conda_fresh))
    assert "do not go together" in said
    assert "pytorch ==2.9.0" in said
    shutil.rmtree(conda_fresh.root / "channel")
    profile.write_text(text, encoding="utf-8")
    assert "A conda channel cannot be read." in _error(setup(conda_fresh))


def test_a_lock_without_sha256_is_refused(conda_fresh: Tiny) -> None:
    conda_channel.write_lock(conda_fresh.root / "profile", conda_fresh.root / "channel", without_hash="pytorch")
    assert "pytorch-2.2.0-standin_0.tar.bz2 cannot be checked: no sha256 is known." in _error(setup(conda_fresh))
    (conda_fresh.root / "profile" / "conda-lock.yml").write_text("version: 1\npackage: nonsense\n", encoding="utf-8")
    assert "conda-lock.yml is not a lock that can be read" in _error(setup(conda_fresh))


def test_without_py_rattler(conda_fresh: Tiny) -> None:
    conda_fresh.patch = "import sys; sys.modules['rattler'] = None"
    said = _error(setup(conda_fresh))
    assert "py-rattler cannot be loaded" in said
    assert "pip install py-rattler" in said


#: Moments of a setup: what is there when the kill comes.
MOMENTS: list[tuple[str, Callable[[Tiny], bool]]] = [
    ("the installer at work", lambda tiny: (tiny.workspace / "miniconda3").exists()),
    ("an unpacked part", lambda tiny: any(tiny.workspace.glob(".ucllm/cache/conda/unpacked/*/lib"))),
    ("a part of Python", lambda tiny: any(tiny.env.glob("lib/python3*/a*.py"))),
    ("Python's record", lambda tiny: any(tiny.env.glob("conda-meta/python-*.json"))),
    ("a part of pytorch", lambda tiny: any(tiny.env.glob("share/stand-in/*"))),
    ("one record of the others", lambda tiny: any(tiny.env.glob("conda-meta/[ct]*.json"))),
]


@pytest.mark.slow  # test_whole_kill.py has random moments
@pytest.mark.parametrize(("moment", "reached"), MOMENTS, ids=[item[0] for item in MOMENTS])
def test_killed_during_the_conda_installation(
    conda_fresh: Tiny, conda_finished: Path, moment: str, reached: Callable[[Tiny], bool]
) -> None:
    child = conda_fresh.start("setup", "--profile", str(conda_fresh.root / "profile"), "--yes", "--json")
    deadline = time.monotonic() + 120
    while not reached(conda_fresh) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert reached(conda_fresh), moment
    child.kill()
    child.communicate()
    outcome = setup(conda_fresh)
    assert outcome.code == 0, outcome.out + outcome.err
    assert _tree(conda_fresh) == _tree(Tiny(conda_finished))


def _tree(tiny: Tiny) -> dict[str, str]:
    """What is in the environment and in Miniconda; conda's own records, which hold addresses and times, by name."""
    found = {**content(tiny.env), **{f"miniconda3/{k}": v for k, v in content(tiny.workspace / "miniconda3").items()}}
    return {name: "" if name.startswith("conda-meta/") else digest for name, digest in found.items()}


def test_the_guides_commands_in_order(tmp_path: Path) -> None:
    outcome = Tiny(tmp_path, patch=f"profiles.locks_dir = lambda: pathlib.Path({str(locks_dir())!r})")(
        "setup", "--profile", "gcp-2024.02", "--dry-run", "--json"
    )
    env = tmp_path / "ws" / ".venv"
    commands = [line for item in outcome.json["data"]["plan"] for line in item["commands"] if "conda" in line]
    wanted = [
        "curl --location --remote-name https://repo.anaconda.com/miniconda/Miniconda3-py310_23.10.0-1-Linux-x86_64.sh",
        "sha256sum --check",
        f"bash Miniconda3-py310_23.10.0-1-Linux-x86_64.sh -b -u -p {tmp_path}/ws/miniconda3",
        f"conda create --prefix {env} python=3.9 pip -y",
        "nvidia/label/cuda-11.8.0::cuda-toolkit=11.8.0=0",
        "pytorch=2.2.0=py3.9_cuda11.8_cudnn8.7.0_0 pytorch-cuda=11.8=h7e8668a_5 torchvision=0.17.0 torchaudio=2.2.0 "
        "-c pytorch -c nvidia",
    ]
    places = [next((place for place, line in enumerate(commands) if part in line), -1) for part in wanted]
    assert -1 not in places, commands
    assert places == sorted(places)


def test_channels_have_addresses(tmp_path: Path) -> None:
    assert conda.channel_urls("defaults", tmp_path) == conda.DEFAULTS
    assert conda.channel_urls("nvidia/label/cuda-11.8.0", tmp_path) == (
        "https://conda.anaconda.org/nvidia/label/cuda-11.8.0",
    )
    assert conda.channel_urls("https://h/x/", tmp_path) == ("https://h/x",)
    assert conda.channel_urls("./a b", tmp_path) == (f"{tmp_path.as_uri()}/a%20b",)
