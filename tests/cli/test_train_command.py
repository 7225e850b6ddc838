"""`ucllm train`: the gate, the dry run, interrupts, and what a script reads."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.bootstrap.conftest import Outcome, Tiny

#: Instead of the stage, a child that says nothing and ends as told; everything around it is real.
_STAGE = """
import dataclasses, pipeline.train as train
real = train.launch
def launch(plan, environment):
    return dataclasses.replace(real(plan, environment), argv=("sh", "-c", {script!r}))
train.launch = launch
"""


def _text(tiny: Tiny) -> str:
    path = tiny.root / "text.txt"
    path.write_text("one line of text\n" * 50, encoding="utf-8")
    return str(path)


def _tokenizer(tiny: Tiny, *args: str) -> Outcome:
    own = ["--input", _text(tiny), "--vocab-size", "300", "--output", str(tiny.root / "own")]
    return tiny("train", "tokenizer", "--json", *own, *args)


def _fake(tiny: Tiny, script: str = "") -> None:
    """A stage that writes its two outputs where the job says and reports that it is done."""
    work = tiny.root / "own.ucllm" / "tokenizer" / "work"
    done = """echo '{"event": "done", "metrics": {"vocab_size": 300}}' >&$UCLLM_EVENTS_FD"""
    made = f"mkdir -p {work}; echo x > {work}/own.model; echo x > {work}/own.vocab; {done}"
    tiny.patch = _STAGE.format(script=script or made)


def test_the_gate_refuses_before_anything_starts(healthy: Tiny) -> None:
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    _fake(healthy)
    refused = _tokenizer(healthy)
    assert refused.code == 1
    assert refused.json["status"] == "refused"
    assert [item["code"] for item in refused.json["errors"]] == ["check.env.packages"]
    assert "ucllm doctor --fix" in refused.json["errors"][0]["hint"]
    assert refused.json["data"]["stages"] == []
    assert not (healthy.root / "own.ucllm").exists()

    started = _tokenizer(healthy, "--no-checks")
    assert started.code == 0, started.out + started.err
    manifest = json.loads((healthy.root / "own.ucllm" / "tokenizer" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["checks_skipped"] is True

    assert healthy.doctor("--fix", "--yes").code == 0
    assert _tokenizer(healthy).code == 0


def test_the_gate_stops_for_what_could_not_be_checked(healthy: Tiny) -> None:
    healthy.patch = (
        "import bootstrap.requirements.env_packages as module, dataclasses\n"
        "def check(profile, facts): raise RuntimeError('no idea')\n"
        "module.REQUIREMENT = dataclasses.replace(module.REQUIREMENT, check=check)"
    )
    refused = _tokenizer(healthy)
    assert (refused.code, [item["code"] for item in refused.json["errors"]]) == (3, ["check.env.packages"])


def test_a_stage_that_ran_and_one_that_is_up_to_date(healthy: Tiny) -> None:
    _fake(healthy)
    for state, reason in (("ran", "it has not run yet"), ("up-to-date", "")):
        (stage,) = _tokenizer(healthy).json["data"]["stages"]
        assert list(stage) == ["stage", "state", "reason", "run_dir", "seconds", "metrics"]
        assert (stage["stage"], stage["state"], stage["reason"]) == ("tokenizer", state, reason)
        assert stage["metrics"] == {"vocab_size": 300}


def test_a_stage_that_fails_has_its_own_exit_code(healthy: Tiny) -> None:
    _fake(healthy, "echo the reason; exit 9")
    failed = _tokenizer(healthy)
    assert (failed.code, failed.json["exit_code"], failed.json["status"]) == (11, 11, "failed")
    assert failed.json["data"]["stages"][-1]["state"] == "failed"
    (problem,) = failed.json["errors"]
    assert problem["code"] == "stage.died"
    assert "the reason" in problem["message"]
    assert "Traceback" not in failed.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_130_and_resumable(healthy: Tiny, number: signal.Signals) -> None:
    marker = healthy.root / "started"
    _fake(healthy, f"touch {marker}; sleep 66")
    own = ["--input", _text(healthy), "--vocab-size", "300", "--output", str(healthy.root / "own")]
    child = healthy.start("train", "tokenizer", "--json", *own)
    deadline = time.monotonic() + 60
    while not marker.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130
    report = json.loads(out)
    assert (report["exit_code"], report["errors"][0]["code"]) == (130, "interrupted")
    assert "Traceback" not in err
    _fake(healthy)
    assert _tokenizer(healthy).code == 0


@pytest.mark.parametrize("stage", ["all", "tokenizer", "corpus", "pretrain", "convert", "finetune", "upload-finetuned"])
def test_a_dry_run_needs_nothing_and_writes_nothing(empty: Tiny, stage: str) -> None:
    planned = empty("train", stage, "--dry-run", "--json", "--profile", "tiny")
    assert planned.code == 0, planned.out + planned.err
    data = planned.json["data"]
    assert {item["status"] for item in data["findings"]} == {"fail", "blocked"}, "told, but never stopped"
    assert data["estimate"]
    assert len(data["plans"]) == (7 if stage == "all" else 1)
    if stage != "all":
        assert data["launch"].keys() == {"argv", "env", "files"}
        assert data["launch"]["argv"][0] == str(empty.workspace / ".venv" / "bin" / "python")
    assert not empty.workspace.exists()
    text = empty("train", stage, "--dry-run", "--profile", "tiny")
    assert text.code == 0
    assert "! env.python" in text.out
    assert not empty.workspace.exists()


def test_a_text_that_cannot_be_fetched_fails_the_stage_that_reads_it(healthy: Tiny) -> None:
    healthy.variables["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"
    failed = healthy("train", "all", "--json")
    assert (failed.code, failed.json["status"]) == (11, "failed")
    assert failed.json["errors"][0]["code"] == "fetch.failed"


def test_an_output_that_is_not_ours_is_refused(healthy: Tiny) -> None:
    _fake(healthy)
    target = healthy.root / "own.model"
    target.write_text("mine", encoding="utf-8")
    refused = _tokenizer(healthy)
    assert (refused.code, refused.json["errors"][0]["code"]) == (11, "output.exists")
    assert target.read_text(encoding="utf-8") == "mine"
    assert _tokenizer(healthy, "--force").code == 0


def test_many_inputs_after_one_option(healthy: Tiny) -> None:
    other = Path(_text(healthy)).with_name("other.txt")
    planned = healthy(
        "train", "corpus", "--input", _text(healthy), str(other), "--tokenizer", "t.model", "--dry-run", "--json"
    )
    assert planned.code == 0, planned.out
    inputs = planned.json["data"]["plans"][0]["inputs"]
    assert [path for name, path in inputs.items() if name != "tokenizer"] == [_text(healthy), str(other)]
