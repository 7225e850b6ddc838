"""What the doctor finds broken in Miniconda and in a conda environment, repairs, and undoes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bootstrap.facts import conda_files
from tests.bootstrap import conda_channel
from tests.bootstrap.conda_workspace import run, setup
from tests.bootstrap.conftest import Outcome, Tiny, content


def _status(tiny: Tiny, name: str, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in tiny.doctor(*args).json["data"]["findings"] if item["id"] == name)
    return found


def _fix(tiny: Tiny, name: str, *args: str) -> Outcome:
    return tiny("doctor", "--fix", "--yes", "--json", "--only", name, *args)


def test_miniconda_fix_and_undo(conda_healthy: Tiny) -> None:
    (conda_healthy.workspace / "miniconda3" / "bin" / "conda").unlink()
    (conda_healthy.workspace / "miniconda3" / "mine").touch()
    assert _status(conda_healthy, "env.miniconda")["status"] == "fail"
    assert _fix(conda_healthy, "env.miniconda").code == 0
    assert _status(conda_healthy, "env.miniconda")["status"] == "ok"
    assert not (conda_healthy.workspace / "miniconda3" / "mine").exists()
    assert conda_healthy("undo", "env.miniconda", "--json").code == 0
    assert (conda_healthy.workspace / "miniconda3" / "mine").exists()
    assert _status(conda_healthy, "env.miniconda")["status"] == "fail"


@pytest.mark.slow
def test_python_fix_and_undo(conda_healthy: Tiny) -> None:
    (conda_healthy.env / "mine").touch()
    for library in conda_healthy.env.glob("lib/libpython*"):
        library.unlink()
    for path in conda_healthy.env.glob("bin/python*"):
        if not path.is_symlink():
            path.write_bytes(b"")
    assert _status(conda_healthy, "env.python")["status"] == "fail"
    assert _fix(conda_healthy, "env.python").code == 0
    assert _status(conda_healthy, "env.python")["status"] == "ok"
    assert not (conda_healthy.env / "mine").exists()
    assert setup(conda_healthy).code == 0  # what went with the old one comes back
    assert conda_healthy("undo", "env.python", "--json").code == 0
    assert (conda_healthy.env / "mine").exists()
    assert _status(conda_healthy, "env.python")["status"] == "fail"


def test_conda_packages_fix(conda_healthy: Tiny) -> None:
    before = content(conda_healthy.env)
    shutil.rmtree(conda_healthy.env / "share" / "stand-in")
    for name in ("pytorch-2", "torchaudio"):
        next((conda_healthy.env / "conda-meta").glob(f"{name}*.json")).unlink()
    record = next((conda_healthy.env / "conda-meta").glob("pytorch-cuda-*.json"))
    data = json.loads(record.read_text(encoding="utf-8"))
    record.with_name("pytorch-cuda-12.1-other_0.json").write_text(
        json.dumps({**data, "version": "12.1", "build": "other_0", "sha256": "0" * 64}), encoding="utf-8"
    )
    record.unlink()
    nothing = {"files": [], "paths_data": {"paths_version": 1, "paths": []}}
    theirs = conda_healthy.env / "conda-meta" / "mine-1-0.json"  # what the user installed beside it
    theirs.write_text(json.dumps({**data, "name": "mine", "version": "1", "build": "0", **nothing}))
    found = _status(conda_healthy, "env.conda-packages")
    assert found["status"] == "fail"
    assert "missing: pytorch 2.2.0=standin_0, torchaudio 2.2.0" in " ".join(found["evidence"])
    assert "pytorch-cuda 12.1=other_0 ≠ 11.8=standin_0" in " ".join(found["evidence"])
    outcome = _fix(conda_healthy, "env.conda-packages")
    assert outcome.code == 0, outcome.out + outcome.err
    assert _status(conda_healthy, "env.conda-packages")["status"] == "ok"
    assert theirs.exists()
    theirs.unlink()
    after = content(conda_healthy.env)
    assert {*before} - {*after} == {f"share/stand-in/{name}" for name in ("cuda-toolkit", "torchvision")}


@pytest.mark.slow
def test_other_pins_are_seen_and_installed(conda_healthy: Tiny) -> None:
    channel, profile = conda_healthy.root / "channel", conda_healthy.root / "profile" / "profile.toml"
    conda_channel.pack(channel, "torchaudio", "2.2.1", "standin_0", {"share/newer": (b"stand-in", 0o644)})
    conda_channel.index(channel)
    text = profile.read_text(encoding="utf-8")
    profile.write_text(text.replace('torchaudio = "2.2.0"', 'torchaudio = "2.2.1"'), encoding="utf-8")
    found = _status(conda_healthy, "env.conda-packages")
    assert found["status"] == "fail"
    assert "what setup resolved was for another state of the profile" in found["evidence"]
    assert setup(conda_healthy).code == 0
    assert (conda_healthy.env / "share" / "newer").exists()
    # A lock instead of what was solved: the same packages, but the lock decides from now on.
    conda_channel.write_lock(conda_healthy.root / "profile", channel)
    lock = conda_healthy.root / "profile" / "conda-lock.yml"
    blocks = lock.read_text(encoding="utf-8").split("- name: ")
    lock.write_text("- name: ".join(item for item in blocks if "torchaudio-2.2.0" not in item), encoding="utf-8")
    assert _status(conda_healthy, "env.conda-packages")["status"] == "fail"
    assert setup(conda_healthy).code == 0
    assert "and with 6 packages of the profile's lock" in _status(conda_healthy, "env.conda-packages")["evidence"]


@pytest.mark.slow
def test_altered_files_fix_and_undo(conda_healthy: Tiny) -> None:
    assert _status(conda_healthy, "env.conda-files", "--deep")["status"] == "ok"
    edited = conda_healthy.site / "torch" / "version.py"
    edited.write_text("__version__ = '2.2.0'\ncuda = '11.8'  # edited\n", encoding="utf-8")
    gone = next(conda_healthy.env.glob("lib/python3*/ssl.py"))
    gone.unlink()
    found = _status(conda_healthy, "env.conda-files", "--deep")
    assert found["status"] == "fail"
    assert f"changed or missing: python: {gone}" in found["evidence"]
    assert f"changed or missing: pytorch: {edited}" in found["evidence"]
    outcome = _fix(conda_healthy, "env.conda-files", "--deep")
    assert outcome.code == 0, outcome.out + outcome.err
    assert _status(conda_healthy, "env.conda-files", "--deep")["status"] == "ok"
    assert "edited" not in edited.read_text(encoding="utf-8")
    assert run(conda_healthy, "import ssl, torch, alpha; print('fine')") == "fine\n"
    assert conda_healthy("undo", "env.conda-files", "--json").code == 0
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
