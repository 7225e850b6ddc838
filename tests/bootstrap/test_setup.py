"""`ucllm setup` from nothing, again, and when it cannot succeed; what it writes, and where."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.bootstrap.conftest import Tiny, stamps
from tests.bootstrap.wheels import build, pin, write_profile


def test_from_nothing_then_doctor_then_nothing_to_do(empty: Tiny) -> None:
    first = empty.setup()
    assert first.code == 0, first.err
    assert first.statuses == {"env.python": "ok", "env.packages": "ok"}
    assert first.json["status"] == "ok"
    assert [item["requirement"] for item in first.json["data"]["actions"]] == ["env.python"] + ["env.packages"] * 2
    said = subprocess.run([empty.env / "bin" / "alpha-cli"], capture_output=True, text=True, check=True)
    assert said.stdout == "alpha 1.0\n"
    assert (empty.env / "bin" / "activate").is_file()
    assert not (empty.site / "gamma.py").exists(), "its marker does not hold"
    # pip asks rustc for its version to introduce itself; where that is rustup's, it writes its own settings.
    assert {path.name for path in (empty.root / "home").iterdir()} <= {".rustup"}

    doctor = empty.doctor()
    assert (doctor.code, doctor.err) == (0, "")
    assert doctor.json["data"]["profile"] == {"name": "tiny", "reason": "the workspace was set up with it"}

    journal = empty.journal()
    assert [(item["requirement"], item["status"]) for item in journal] == [
        ("env.python", "started"),
        ("env.python", "done"),
        ("env.packages", "started"),
        ("env.packages", "done"),
        ("env.packages", "started"),
        ("env.packages", "done"),
        ("env.packages", "made"),
    ]
    assert all(item["time"] and (item.get("commands") or item["status"] == "made") for item in journal)

    before = stamps(empty.workspace)
    began = time.monotonic()
    second = empty.setup()
    assert (second.code, second.json["data"]["actions"]) == (0, [])
    assert stamps(empty.workspace) == before
    assert time.monotonic() - began < 5


def test_doctor_with_another_profile_never_changes_the_record(healthy: Tiny) -> None:
    record = (healthy.workspace / ".ucllm" / "workspace.json").read_text(encoding="utf-8")
    assert healthy.doctor("--profile", "other").code == 1
    assert (healthy.workspace / ".ucllm" / "workspace.json").read_text(encoding="utf-8") == record
    mended = healthy.doctor("--profile", "other", "--fix", "--yes")
    assert mended.code == 0, mended.err
    assert (healthy.workspace / ".ucllm" / "workspace.json").read_text(encoding="utf-8") == record
    assert healthy.doctor().json["data"]["profile"]["name"] == "tiny"


def test_setup_records_the_profile_it_was_asked_for(healthy: Tiny) -> None:
    assert healthy("setup", "--profile", "other", "--yes").code == 0
    chosen = healthy.doctor()
    assert (chosen.code, chosen.json["data"]["profile"]["name"]) == (0, "other")


def test_a_missing_wheel_is_told_in_pips_words_with_the_log(healthy: Tiny) -> None:
    """Also: exit 10 of setup, exit 4 of doctor --fix, and a journal that says what failed."""
    (healthy.root / "wheels" / "beta-2.0-py3-none-any.whl").unlink()
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    for outcome, code in ((healthy.setup(), 10), (healthy.doctor("--fix", "--yes"), 4)):
        assert outcome.code == outcome.json["exit_code"] == code
        (problem,) = outcome.json["errors"]
        assert problem["code"] == "command.failed"
        assert "No matching distribution found for beta==2.0" in problem["message"]
        log = healthy.workspace / ".ucllm" / "logs" / "env.packages.txt"
        assert str(log) in problem["hint"]
        assert "beta" in log.read_text(encoding="utf-8")
        assert outcome.statuses == {"env.python": "ok", "env.packages": "fail"}
    assert healthy.journal()[-1]["status"] == "failed"
    text = healthy("setup")
    assert text.code == 10
    assert "No matching distribution found for beta==2.0" in text.err
    assert "missing: beta 2.0" in text.out


def test_a_wheel_with_another_hash_is_refused(healthy: Tiny) -> None:
    build(healthy.root / "wheels", "beta", "2.0", text="tampered")
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    outcome = healthy.setup()
    assert outcome.code == 10
    assert "DO NOT MATCH THE HASHES" in outcome.json["errors"][0]["message"]
    assert not list(healthy.site.glob("beta*"))


def _without_torch(tiny: Tiny) -> None:
    for path in tiny.site.glob("torch*"):
        path.rename(tiny.root / path.name)


def test_torch_with_another_hash_does_not_lead_to_the_default_wheel(healthy: Tiny) -> None:
    _without_torch(healthy)
    build(healthy.root / "wheels", "torch", "9.9+cpu", text="tampered")
    outcome = healthy.setup()
    assert outcome.code == 10
    assert "DO NOT MATCH THE HASHES" in outcome.json["errors"][0]["message"]
    assert not list(healthy.site.glob("torch*"))
    assert not list(healthy.site.glob("cudathing*"))


def test_no_cpu_wheel_leads_to_the_default_lock_after_saying_how_big_it_is(healthy: Tiny) -> None:
    _without_torch(healthy)
    (healthy.root / "wheels" / "torch-9.9+cpu-py3-none-any.whl").unlink()
    outcome = healthy.setup()
    assert outcome.code == 0, outcome.err
    assert "2.7 GB to download, 4.6 GB on disk" in outcome.err
    assert [path.name for path in healthy.site.glob("torch-*.dist-info")] == ["torch-9.9.dist-info"]
    assert list(healthy.site.glob("cudathing-*"))
    assert healthy.doctor().code == 0, "the default wheel is the locked version too"


def test_the_cpu_index_is_asked_before_the_default_wheel(healthy: Tiny) -> None:
    _without_torch(healthy)
    elsewhere = healthy.root / "cpu-index"
    elsewhere.mkdir()
    wheel = healthy.root / "wheels" / "torch-9.9+cpu-py3-none-any.whl"
    wheel.rename(elsewhere / wheel.name)
    write_profile(healthy.root / "locks", "tiny", {}, cpu_index=elsewhere)
    outcome = healthy.setup()
    assert outcome.code == 0, outcome.err
    assert "torch: from PyTorch's own list of wheels" in outcome.err
    assert [path.name for path in healthy.site.glob("torch-*.dist-info")] == ["torch-9.9+cpu.dist-info"]


def test_a_pythonpath_of_the_users_does_not_hide_what_is_missing(healthy: Tiny) -> None:
    """Clusters' modules set PYTHONPATH; pip must not take what lies there for installed."""
    shadow = healthy.root / "shadow"
    shadow.mkdir()
    for path in healthy.site.glob("beta*"):
        path.rename(shadow / path.name)
    healthy.variables["PYTHONPATH"] = f"{Path(__file__).parents[2]}:{shadow}"
    assert healthy.doctor().statuses["env.packages"] == "fail"
    assert healthy.setup().code == 0
    assert list(healthy.site.glob("beta-*.dist-info"))


def test_what_a_killed_pip_left_in_the_scratch_folder_is_cleared(healthy: Tiny) -> None:
    left = healthy.workspace / ".ucllm" / "cache" / "tmp" / "pip-unpack-x" / "huge.whl"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    assert healthy.setup().code == 0
    assert not left.exists()


@pytest.mark.parametrize("command", ["setup", "doctor"])
def test_a_workspace_that_cannot_be_written(healthy: Tiny, command: str) -> None:
    """A file stands where our folder must be: root, who runs many tests, may write to folders of any mode."""
    state = healthy.workspace / ".ucllm"
    state.rename(healthy.root / "aside")
    state.write_text("in the way", encoding="utf-8")
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    healthy.variables["UCLLM_PROFILE"] = "tiny"
    outcome = healthy(command, "--json", *(["--fix", "--yes"] if command == "doctor" else []))
    assert outcome.code == {"setup": 10, "doctor": 4}[command], outcome.err
    assert outcome.json["errors"][0]["code"] == "workspace.not-writable"
    assert state.read_text(encoding="utf-8") == "in the way"


def test_a_disk_that_fills_up_is_no_crash(healthy: Tiny) -> None:
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    healthy.patch = (
        "import bootstrap.mend\n"
        "def full(self, **entry): raise OSError(28, 'No space left on device', '/some/journal')\n"
        "bootstrap.mend.Journal.write = full"
    )
    outcome = healthy.setup()
    assert outcome.code == 10
    (problem,) = outcome.json["errors"]
    assert problem["code"] == "workspace.not-writable"
    assert "/some/journal: No space left on device" in problem["message"]


def test_a_dry_run_says_everything_and_writes_nothing(empty: Tiny) -> None:
    outcome = empty.setup("--dry-run")
    assert outcome.code == 0
    assert {item["requirement"] for item in outcome.json["data"]["plan"]} == {"env.python", "env.packages"}
    assert not empty.workspace.exists()


def test_an_unsupported_python_is_named_and_nothing_is_tried(empty: Tiny) -> None:
    write_profile(empty.root / "locks", "tiny", {}, cpu_index=empty.root, pythons='"3.99"')
    outcome = empty.setup()
    assert outcome.code == 10
    (finding,) = [item for item in outcome.json["data"]["findings"] if item["id"] == "env.python"]
    assert "Install one of Python 3.99" in finding["remedy"]["text"]
    assert not finding["remedy"]["automatic"]
    assert not empty.env.exists()


def test_a_lock_that_names_a_marker_is_read_without_an_environment(empty: Tiny) -> None:
    """Before the environment exists nobody knows its Python; the plan must be possible all the same."""
    wheel = empty.root / "wheels" / "beta-2.0-py3-none-any.whl"
    (empty.lock / "requirements.lock").write_text(pin(wheel, "python_full_version < '3.11.0rc1'"), encoding="utf-8")
    outcome = empty.setup("--dry-run")
    assert outcome.code == 0, outcome.out
