"""Setup of a conda environment from a local channel: a real Python, stand-ins for pytorch, CUDA and Miniconda."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bootstrap import conda
from bootstrap.facts import conda_files
from bootstrap.profiles import locks_dir
from tests.bootstrap import conda_channel
from tests.bootstrap.conda_channel import PACKAGES, SUBDIR
from tests.bootstrap.conftest import Outcome, Tiny, content, one_worker_at_a_time, stamps
from tests.bootstrap.server import Faulty, serving

PYTHON = f"python-{PACKAGES['python'].replace('=', '-')}.tar.bz2"


def write(root: Path, made: Path, *, base: str = "", installer: str = "") -> Tiny:
    """The profile in ``root``: its channel is a copy of the one in ``made``, reached as ``base`` if that is given."""
    shutil.copytree(made / "channel", root / "channel")
    shutil.copy(made / "standin_miniconda.sh", root)
    script = root / "standin_miniconda.sh"
    (root / "profile").mkdir()
    conda_channel.write_profile(
        root / "profile",
        root / "wheels",
        channel=base or "../channel",
        installer=installer or script.as_uri(),
        sha256=hashlib.sha256(script.read_bytes()).hexdigest(),
    )
    return Tiny(root)


def setup(tiny: Tiny, *args: str) -> Outcome:
    return tiny("setup", "--profile", str(tiny.root / "profile"), "--yes", "--json", *args)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The channel and the installer, packed once for all workers."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "conda"
    with one_worker_at_a_time(base.parent / "conda.lock"):
        if not (root / "channel" / SUBDIR / "repodata.json").exists():
            conda_channel.write_channel(root / "channel")
            conda_channel.write_installer(root)
    return root


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Path:
    """A folder whose workspace setup finished, made once for all workers; read only."""
    base = tmp_path_factory.getbasetemp()
    root = made.parent / "conda-finished"
    with one_worker_at_a_time(base.parent / "conda-finished.lock"):
        if not root.exists():
            root.mkdir()
            outcome = setup(write(root, made))
            assert outcome.code == 0, outcome.out + outcome.err
            (root / "said.txt").write_text(outcome.err, encoding="utf-8")
    return root


@pytest.fixture
def fresh(tmp_path: Path, made: Path) -> Tiny:
    """The profile and its channel; no workspace yet."""
    return write(tmp_path, made)


@pytest.fixture
def healthy(fresh: Tiny, finished: Path) -> Tiny:
    """A workspace in which everything is as the profile says: a copy, which says where it lies now."""
    shutil.copytree(finished / "ws", fresh.workspace, symlinks=True)
    there, here = str(finished).encode(), str(fresh.root).encode()
    for folder in (fresh.workspace, fresh.root / "channel"):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.suffix not in (".bz2", ".pyc"):
                body = path.read_bytes()
                if there in body:
                    path.write_bytes(body.replace(there, here))
    for path in (fresh.env / "conda-meta").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for item in record["paths_data"]["paths"]:
            if item.get("file_mode") == "text":
                item["sha256_in_prefix"] = hashlib.sha256((fresh.env / item["_path"]).read_bytes()).hexdigest()
        path.write_text(json.dumps(record), encoding="utf-8")
    solution = fresh.workspace / ".ucllm" / "conda-solution.json"
    data = json.loads(solution.read_text(encoding="utf-8"))
    assert setup(fresh, "--dry-run").code == 0
    from bootstrap import profiles

    data["inputs"] = conda.inputs(profiles.load(str(fresh.root / "profile")))
    solution.write_text(json.dumps(data), encoding="utf-8")
    return fresh


@contextmanager
def _reached(tiny_root: Path, made: Path, by: str) -> Iterator[tuple[Tiny, Callable[[str, bytes | None], None]]]:
    """The profile over ``file`` or ``http``, and how to change a file of the channel (``None``: it is gone)."""
    if by == "file":
        tiny = write(tiny_root, made)

        def change(name: str, body: bytes | None) -> None:
            path = tiny_root / name
            path.unlink() if body is None else path.write_bytes(body)

        yield tiny, change
        return
    served = {f"/{path.relative_to(made)}": path.read_bytes() for path in made.rglob("*") if path.is_file()}
    with serving(Faulty({**served})) as server:
        tiny = write(tiny_root, made, base=f"{server.url}/channel", installer=f"{server.url}/standin_miniconda.sh")

        def replace(name: str, body: bytes | None) -> None:
            if body is None:
                del server.files[f"/{name}"]
            else:
                server.files[f"/{name}"] = body

        yield tiny, replace


def _flipped(body: bytes) -> bytes:
    return body[:-40] + bytes([body[-40] ^ 1]) + body[-39:]


def _run(tiny: Tiny, code: str) -> str:
    argv = [str(tiny.env / "bin" / "python"), "-c", code]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_from_nothing_to_healthy(finished: Path) -> None:
    tiny = Tiny(finished)
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
    for word in _run(tiny, code).split():
        assert word.startswith(str(tiny.env))
    record = json.loads(next((tiny.env / "conda-meta").glob("pytorch-2.2.0-*.json")).read_text(encoding="utf-8"))
    assert record["url"] == f"{(finished / 'channel').as_uri()}/{SUBDIR}/pytorch-2.2.0-standin_0.tar.bz2"
    assert "stand-in" in record["license"]
    said = (finished / "said.txt").read_text(encoding="utf-8")
    assert "no conda-lock.yml: its exact versions came to 6 packages" in said
    packages = next(item for item in tiny.doctor().json["data"]["findings"] if item["id"] == "env.conda-packages")
    assert "the profile has no complete lock" in " ".join(packages["evidence"])


def test_a_second_setup_does_nothing(finished: Path) -> None:
    tiny = Tiny(finished)
    before = stamps(tiny.workspace)
    outcome = setup(tiny)
    assert outcome.code == 0
    assert outcome.json["data"]["actions"] == []
    assert stamps(tiny.workspace) == before


def test_hooks_under_conda_activate(finished: Path) -> None:
    env, sh = finished / "ws" / ".venv", finished / "ws" / "miniconda3" / "etc" / "profile.d" / "conda.sh"
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


@pytest.mark.parametrize("by", ["file", "http"])
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("tampered", f"{PYTHON} is not the file it should be"),
        ("truncated", f"{PYTHON} is not the file it should be"),
        ("missing", f"Cannot download {PYTHON}"),
    ],
)
def test_a_package_that_is_not_the_locked_one(tmp_path: Path, made: Path, by: str, fault: str, sentence: str) -> None:
    with _reached(tmp_path, made, by) as (tiny, change):
        name = f"channel/{SUBDIR}/{PYTHON}"
        right = (made / name).read_bytes()
        change(name, {"tampered": _flipped(right), "truncated": right[:-1000], "missing": None}[fault])
        assert sentence in _error(setup(tiny))
        assert not tiny.env.exists()
        assert not [*tiny.workspace.rglob("*.tar.bz2")]


@pytest.mark.parametrize("by", ["file", "http"])
def test_a_wrong_hash_in_the_lock(tmp_path: Path, made: Path, by: str) -> None:
    with _reached(tmp_path, made, by) as (tiny, change):
        base = re.search(r'channels = \["([^"]*)"', (tmp_path / "profile" / "profile.toml").read_text())
        assert base
        where = base[1] if by == "http" else (tmp_path / "channel").as_uri()
        conda_channel.write_lock(tmp_path / "profile", made / "channel", base=where)
        lock = tmp_path / "profile" / "conda-lock.yml"
        right = hashlib.sha256((made / "channel" / SUBDIR / PYTHON).read_bytes()).hexdigest()
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
def test_an_installer_with_one_byte_changed_never_runs(tmp_path: Path, made: Path, by: str) -> None:
    with _reached(tmp_path, made, by) as (tiny, change):
        change("standin_miniconda.sh", _flipped((made / "standin_miniconda.sh").read_bytes()))
        assert "standin_miniconda.sh is not the file it should be" in _error(setup(tiny))
        assert not (tiny.workspace / "miniconda3").exists()
        assert not tiny.env.exists()


def test_a_tampered_package_leaves_a_working_environment_as_it_is(healthy: Tiny) -> None:
    shutil.rmtree(healthy.workspace / ".ucllm" / "cache")
    next((healthy.env / "conda-meta").glob("pytorch-2.2.0-*.json")).unlink()
    archive = healthy.root / "channel" / SUBDIR / "pytorch-2.2.0-standin_0.tar.bz2"
    archive.write_bytes(_flipped(archive.read_bytes()))
    before = content(healthy.env)
    assert "pytorch-2.2.0-standin_0.tar.bz2 is not the file it should be" in _error(setup(healthy))
    assert content(healthy.env) == before


def test_what_cannot_be_resolved_is_named(fresh: Tiny) -> None:
    profile = fresh.root / "profile" / "profile.toml"
    text = profile.read_text(encoding="utf-8")
    profile.write_text(text.replace('pytorch = "2.2.0', 'pytorch = "2.9.0'), encoding="utf-8")
    said = _error(setup(fresh))
    assert "do not go together" in said
    assert "pytorch ==2.9.0" in said
    shutil.rmtree(fresh.root / "channel")
    profile.write_text(text, encoding="utf-8")
    assert "A conda channel cannot be read." in _error(setup(fresh))


def test_a_lock_without_sha256_is_refused(fresh: Tiny) -> None:
    conda_channel.write_lock(fresh.root / "profile", fresh.root / "channel", without_hash="pytorch")
    assert "pytorch-2.2.0-standin_0.tar.bz2 cannot be checked: no sha256 is known." in _error(setup(fresh))
    (fresh.root / "profile" / "conda-lock.yml").write_text("version: 1\npackage: nonsense\n", encoding="utf-8")
    assert "conda-lock.yml is not a lock that can be read" in _error(setup(fresh))


def test_without_py_rattler(fresh: Tiny) -> None:
    fresh.patch = "import sys; sys.modules['rattler'] = None"
    said = _error(setup(fresh))
    assert "py-rattler cannot be loaded" in said
    assert "pip install py-rattler" in said


def _status(tiny: Tiny, name: str, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in tiny.doctor(*args).json["data"]["findings"] if item["id"] == name)
    return found


def _fix(tiny: Tiny, name: str, *args: str) -> Outcome:
    return tiny("doctor", "--fix", "--yes", "--json", "--only", name, *args)


def test_miniconda_fix_and_undo(healthy: Tiny) -> None:
    (healthy.workspace / "miniconda3" / "bin" / "conda").unlink()
    (healthy.workspace / "miniconda3" / "mine").touch()
    assert _status(healthy, "env.miniconda")["status"] == "fail"
    assert _fix(healthy, "env.miniconda").code == 0
    assert _status(healthy, "env.miniconda")["status"] == "ok"
    assert not (healthy.workspace / "miniconda3" / "mine").exists()
    assert healthy("undo", "env.miniconda", "--json").code == 0
    assert (healthy.workspace / "miniconda3" / "mine").exists()
    assert _status(healthy, "env.miniconda")["status"] == "fail"


def test_python_fix_and_undo(healthy: Tiny) -> None:
    (healthy.env / "mine").touch()
    for library in healthy.env.glob("lib/libpython*"):
        library.unlink()
    for path in healthy.env.glob("bin/python*"):
        if not path.is_symlink():
            path.write_bytes(b"")
    assert _status(healthy, "env.python")["status"] == "fail"
    assert _fix(healthy, "env.python").code == 0
    assert _status(healthy, "env.python")["status"] == "ok"
    assert not (healthy.env / "mine").exists()
    assert setup(healthy).code == 0  # what went with the old one comes back
    assert healthy("undo", "env.python", "--json").code == 0
    assert (healthy.env / "mine").exists()
    assert _status(healthy, "env.python")["status"] == "fail"


def test_conda_packages_fix(healthy: Tiny) -> None:
    before = content(healthy.env)
    shutil.rmtree(healthy.env / "share" / "stand-in")
    for name in ("pytorch-2", "torchaudio"):
        next((healthy.env / "conda-meta").glob(f"{name}*.json")).unlink()
    record = next((healthy.env / "conda-meta").glob("pytorch-cuda-*.json"))
    data = json.loads(record.read_text(encoding="utf-8"))
    record.with_name("pytorch-cuda-12.1-other_0.json").write_text(
        json.dumps({**data, "version": "12.1", "build": "other_0", "sha256": "0" * 64}), encoding="utf-8"
    )
    record.unlink()
    nothing = {"files": [], "paths_data": {"paths_version": 1, "paths": []}}
    theirs = healthy.env / "conda-meta" / "mine-1-0.json"  # what the user installed beside it
    theirs.write_text(json.dumps({**data, "name": "mine", "version": "1", "build": "0", **nothing}))
    found = _status(healthy, "env.conda-packages")
    assert found["status"] == "fail"
    assert "missing: pytorch 2.2.0=standin_0, torchaudio 2.2.0" in " ".join(found["evidence"])
    assert "pytorch-cuda 12.1=other_0 ≠ 11.8=standin_0" in " ".join(found["evidence"])
    outcome = _fix(healthy, "env.conda-packages")
    assert outcome.code == 0, outcome.out + outcome.err
    assert _status(healthy, "env.conda-packages")["status"] == "ok"
    assert theirs.exists()
    theirs.unlink()
    after = content(healthy.env)
    assert {*before} - {*after} == {f"share/stand-in/{name}" for name in ("cuda-toolkit", "torchvision")}


def test_other_pins_are_seen_and_installed(healthy: Tiny) -> None:
    channel, profile = healthy.root / "channel", healthy.root / "profile" / "profile.toml"
    conda_channel.pack(channel, "torchaudio", "2.2.1", "standin_0", {"share/newer": (b"stand-in", 0o644)})
    conda_channel.index(channel)
    text = profile.read_text(encoding="utf-8")
    profile.write_text(text.replace('torchaudio = "2.2.0"', 'torchaudio = "2.2.1"'), encoding="utf-8")
    found = _status(healthy, "env.conda-packages")
    assert found["status"] == "fail"
    assert "what setup resolved was for another state of the profile" in found["evidence"]
    assert setup(healthy).code == 0
    assert (healthy.env / "share" / "newer").exists()
    # A lock instead of what was solved: the same packages, but the lock decides from now on.
    conda_channel.write_lock(healthy.root / "profile", channel)
    lock = healthy.root / "profile" / "conda-lock.yml"
    blocks = lock.read_text(encoding="utf-8").split("- name: ")
    lock.write_text("- name: ".join(item for item in blocks if "torchaudio-2.2.0" not in item), encoding="utf-8")
    assert _status(healthy, "env.conda-packages")["status"] == "fail"
    assert setup(healthy).code == 0
    assert "and with 6 packages of the profile's lock" in _status(healthy, "env.conda-packages")["evidence"]


#: Moments of a setup: what is there when the kill comes.
MOMENTS: list[tuple[str, Callable[[Tiny], bool]]] = [
    ("the installer at work", lambda tiny: (tiny.workspace / "miniconda3").exists()),
    ("an unpacked part", lambda tiny: any(tiny.workspace.glob(".ucllm/cache/conda/unpacked/*/lib"))),
    ("a part of Python", lambda tiny: any(tiny.env.glob("lib/python3*/a*.py"))),
    ("Python's record", lambda tiny: any(tiny.env.glob("conda-meta/python-*.json"))),
    ("a part of pytorch", lambda tiny: any(tiny.env.glob("share/stand-in/*"))),
    ("one record of the others", lambda tiny: any(tiny.env.glob("conda-meta/[ct]*.json"))),
]


@pytest.mark.parametrize(("moment", "reached"), MOMENTS, ids=[item[0] for item in MOMENTS])
def test_killed_during_the_conda_installation(
    fresh: Tiny, finished: Path, moment: str, reached: Callable[[Tiny], bool]
) -> None:
    child = fresh.start("setup", "--profile", str(fresh.root / "profile"), "--yes", "--json")
    deadline = time.monotonic() + 120
    while not reached(fresh) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert reached(fresh), moment
    child.kill()
    child.communicate()
    outcome = setup(fresh)
    assert outcome.code == 0, outcome.out + outcome.err
    assert _tree(fresh) == _tree(Tiny(finished))


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


def test_altered_files_fix_and_undo(healthy: Tiny) -> None:
    assert _status(healthy, "env.conda-files", "--deep")["status"] == "ok"
    edited = healthy.site / "torch" / "version.py"
    edited.write_text("__version__ = '2.2.0'\ncuda = '11.8'  # edited\n", encoding="utf-8")
    gone = next(healthy.env.glob("lib/python3*/ssl.py"))
    gone.unlink()
    found = _status(healthy, "env.conda-files", "--deep")
    assert found["status"] == "fail"
    assert f"changed or missing: python: {gone}" in found["evidence"]
    assert f"changed or missing: pytorch: {edited}" in found["evidence"]
    outcome = _fix(healthy, "env.conda-files", "--deep")
    assert outcome.code == 0, outcome.out + outcome.err
    assert _status(healthy, "env.conda-files", "--deep")["status"] == "ok"
    assert "edited" not in edited.read_text(encoding="utf-8")
    assert _run(healthy, "import ssl, torch, alpha; print('fine')") == "fine\n"
    assert healthy("undo", "env.conda-files", "--json").code == 0
    assert "edited" in edited.read_text(encoding="utf-8")


def test_pip_may_replace_what_conda_brought(tmp_path: Path) -> None:
    site, meta = tmp_path / "lib" / "site-packages", tmp_path / "conda-meta"
    (site / "pip-24.0.dist-info").mkdir(parents=True)
    meta.mkdir()

    def path(name: str, **more: str) -> dict[str, str]:
        return {"_path": f"lib/site-packages/{name}", "path_type": "hardlink", "sha256": "0" * 64, **more}

    old = [path("pip/x.py"), path("pip-23.3.dist-info/METADATA")]
    (meta / "pip-23.3-py_0.json").write_text(json.dumps({"name": "pip", "paths_data": {"paths": old}}))
    assert conda_files.compare(tmp_path) == ({}, 0)
    (site / "mine.txt").touch()
    mine = [path("mine.txt", prefix_placeholder="/old"), path("gone.so", path_type="softlink"), path("mine.pyc")]
    (meta / "mine-1-0.json").write_text(json.dumps({"name": "mine", "paths_data": {"paths": mine}}))
    (meta / "half-1-0.json").write_text("{")
    wrong = {"half": (str(meta / "half-1-0.json"),), "mine": (str(site / "gone.so"),)}
    assert conda_files.compare(tmp_path) == (wrong, 3)
