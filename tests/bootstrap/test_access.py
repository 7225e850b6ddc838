"""Logins: found where the clients look, never read, private or made so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap.facts import AccessFacts, Facts, Login
from bootstrap.facts import access as collector
from bootstrap.facts.collect import Request
from bootstrap.journal import Journal, Recorder, fixes, undo
from bootstrap.profiles import load
from bootstrap.requirements import Requirement
from bootstrap.requirements import credentials_huggingface as huggingface
from bootstrap.requirements import credentials_wandb as wandb
from bootstrap.workspace import Workspace

PROFILE = load("cpu")
FILE = Login("file", "/h/token", "0600")
HEALTHY = Facts("/w", access=AccessFacts(FILE, replace(FILE, path="/h/.netrc"), looked_in=("HF_TOKEN", "/h/token")))
NAMES = (
    *("HUGGING_FACE_HUB_TOKEN", "HF_HOME", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "NETRC"),
    *("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"),
)
SECRET = "s3cret-s3cret"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without any login."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def _collect(home: Path) -> AccessFacts:
    found = collector.collect(Request(PROFILE, Workspace(home / "ws")))
    assert SECRET not in repr(found), "a login never becomes a fact"
    return found


def _write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_nothing_anywhere(home: Path) -> None:
    found = _collect(home)
    assert (found.huggingface, found.wandb, found.hub_offline) == (Login(), Login(), False)
    assert found.looked_in[-1] == str(home / ".cache" / "huggingface" / "token")
    assert found.wandb_looked_in == ("WANDB_API_KEY", str(home / ".netrc"), str(home / "_netrc"))
    facts = replace(HEALTHY, access=found)
    for requirement in (huggingface.REQUIREMENT, wandb.REQUIREMENT):
        finding = requirement.check(PROFILE, facts)
        assert finding.status == "skipped"
        assert "not logged in" in finding.summary
        assert requirement.plan is not None
        assert requirement.plan(PROFILE, facts, Workspace(home)) == []


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_in_a_variable(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _write(home / ".cache" / "huggingface" / "token", SECRET, 0o644)
    monkeypatch.setenv(name, SECRET)
    assert _collect(home).huggingface == Login("variable", name)


@pytest.mark.parametrize(
    ("variable", "value", "file"),
    [
        ("HF_TOKEN_PATH", "mine", "mine"),
        ("HF_HOME", "hf", "hf/token"),
        ("XDG_CACHE_HOME", "xdg", "xdg/huggingface/token"),
        ("HF_TOKEN", "", ".cache/huggingface/token"),
    ],
)
def test_a_token_in_a_file(home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, file: str) -> None:
    monkeypatch.setenv(variable, str(home / value) if value else "")
    path = _write(home / file, SECRET, 0o640)
    assert _collect(home).huggingface == Login("file", str(path), "0640")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"machine api.wandb.ai\n  login user\n  password {SECRET}\n", True),
        (f"machine api.wandb.ai login user password {SECRET}\n", True),
        (f"machine other.example\n  login api.wandb.ai\n  password {SECRET}\n", False),
        ("", False),
    ],
)
def test_a_key_in_netrc(home: Path, text: str, *, found: bool) -> None:
    path = _write(home / ".netrc", text)
    assert _collect(home).wandb == (Login("file", str(path), "0600") if found else Login())


def test_a_key_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(home / "mine", f"machine wandb.site.example login user password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(path))
    assert _collect(home).wandb == Login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.site.example:8080/x")
    assert _collect(home).wandb.path == str(path)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert _collect(home).wandb == Login("variable", "WANDB_API_KEY")


def test_offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    facts = replace(HEALTHY, access=_collect(home))
    assert wandb.check(PROFILE, facts).status == "ok"
    finding = huggingface.check(PROFILE, facts)
    assert finding.status == "skipped"
    assert any("HF_HUB_OFFLINE" in line for line in finding.evidence)


@pytest.mark.parametrize("requirement", [huggingface.REQUIREMENT, wandb.REQUIREMENT], ids=lambda item: item.id)
def test_private_open_and_unknown(requirement: Requirement) -> None:
    def status(login: Login) -> str:
        return requirement.check(PROFILE, replace(HEALTHY, access=AccessFacts(login, login))).status

    assert requirement.check(PROFILE, HEALTHY).status == "ok"
    assert status(Login("variable", "X")) == "ok"
    assert [status(replace(FILE, mode=mode)) for mode in ("0400", "0600", "0640", "0604")] == ["ok", "ok"] + [
        "warn"
    ] * 2
    assert status(replace(FILE, mode="")) == "unknown"


@pytest.mark.parametrize(
    ("requirement", "file", "text"),
    [
        (huggingface.REQUIREMENT, ".cache/huggingface/token", SECRET),
        (wandb.REQUIREMENT, ".netrc", f"machine api.wandb.ai login user password {SECRET}\n"),
    ],
    ids=["huggingface", "wandb"],
)
def test_an_open_file_is_made_private_and_undo_restores_it(
    home: Path, requirement: Requirement, file: str, text: str
) -> None:
    path = _write(home / file, text, 0o644)
    workspace = Workspace(home / "ws")
    facts = replace(HEALTHY, access=_collect(home))
    finding = requirement.check(PROFILE, facts)
    assert (finding.status, finding.remedy and finding.remedy.automatic) == ("warn", True)

    assert requirement.plan is not None
    (action,) = requirement.plan(PROFILE, facts, workspace)
    assert action.commands == (f"chmod 600 {path}",)
    journal = Journal(workspace)
    action.act(Recorder(journal, 1, requirement.id, lambda _text: None))
    assert path.stat().st_mode & 0o7777 == 0o600
    healed = replace(HEALTHY, access=_collect(home))
    assert requirement.check(PROFILE, healed).status == "ok"
    assert requirement.plan(PROFILE, healed, workspace) == []

    undo(journal, fixes(journal)[0])
    assert path.stat().st_mode & 0o7777 == 0o644
    assert path.read_text(encoding="utf-8") == text
