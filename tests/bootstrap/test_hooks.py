"""The activation hooks in real shells, and the requirement that puts them in place."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bootstrap.facts import CondaFacts, EnvFacts, Facts, Hook
from bootstrap.facts.conda import ACTIVATE, DEACTIVATE, read
from bootstrap.journal import Journal, Recorder, fixes, undo
from bootstrap.profiles import Profile
from bootstrap.requirements.env_hooks import REQUIREMENT, check, plan, texts
from bootstrap.workspace import Workspace

PROFILE = Profile("p", "", Path("/p"), "r", {}, (), ("3.9",), env_kind="conda")
SHELLS = [[name, *more] for name in ("dash", "bash", "zsh") for more in ((), ("-u",), ("-eu",)) if shutil.which(name)]
#: The guide's hooks in their essentials.
GUIDE = {
    ACTIVATE: "export ORIGINAL_LD_LIBRARY_PATH=$LD_LIBRARY_PATH\n"
    'export LD_LIBRARY_PATH="$HOME/miniconda3/envs/.venv/lib:$LD_LIBRARY_PATH"\n',
    DEACTIVATE: "export LD_LIBRARY_PATH=$ORIGINAL_LD_LIBRARY_PATH\nunset ORIGINAL_LD_LIBRARY_PATH\n",
}


def write(env: Path) -> Path:
    for name, text in texts(str(env)).items():
        path = env / "etc" / "conda" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    return env


def run(shell: list[str], script: str, env: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [*shell, "-c", script], env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


SHOW = 'printf "%s|%s\\n" "${LD_LIBRARY_PATH-unset}" "${PYTHONNOUSERSITE-unset}"\n'


def source(env: Path, name: str) -> str:
    return f'. "{env}/etc/conda/{name}"\n'


@pytest.mark.parametrize("shell", SHELLS, ids="".join)
@pytest.mark.parametrize("before", [None, "", "/a", "/a:/b", ":/a", "/a:", "/a::/b", ":", "/a b:/[x]*"])
@pytest.mark.parametrize("user", [None, "", "1", "yes"])
@pytest.mark.parametrize("times", [1, 2])
def test_restored_exactly(tmp_path: Path, shell: list[str], before: str | None, user: str | None, times: int) -> None:
    env = write(tmp_path / "it's [a] env")
    variables = {} if before is None else {"LD_LIBRARY_PATH": before}
    variables |= {} if user is None else {"PYTHONNOUSERSITE": user}
    script = SHOW + source(env, ACTIVATE) * times + SHOW + source(env, DEACTIVATE) * times + SHOW
    first, active, last = run(shell, script + "env | grep -i ucllm || true; set | grep -i ^_ucllm || true", variables)
    assert first == last
    entries, nouser = active.rsplit("|", 1)
    assert entries == ":".join([f"{env}/lib"] * times + ([before] if before else []))
    assert nouser == (user or "1")


@pytest.mark.parametrize("shell", SHELLS, ids="".join)
def test_nested_and_changed_in_between(tmp_path: Path, shell: list[str]) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    script = source(one, ACTIVATE) + source(two, ACTIVATE) + SHOW + 'LD_LIBRARY_PATH="/module:$LD_LIBRARY_PATH"\n'
    script += source(two, DEACTIVATE) + SHOW + source(one, DEACTIVATE) + SHOW
    assert run(shell, script, {}) == [f"{two}/lib:{one}/lib|1", f"/module:{one}/lib|1", "/module|unset"]


@pytest.mark.parametrize("shell", SHELLS, ids="".join)
def test_deactivated_without_activation_changes_nothing(tmp_path: Path, shell: list[str]) -> None:
    env = write(tmp_path / "env")
    variables = {"LD_LIBRARY_PATH": f"{env}/lib64:/a", "PYTHONNOUSERSITE": "x"}
    assert len(set(run(shell, SHOW + source(env, DEACTIVATE) + SHOW, variables))) == 1
    assert run(shell, source(env, DEACTIVATE) + SHOW, {}) == ["unset|unset"]


def test_children_see_it_and_a_subshell_can_deactivate(tmp_path: Path) -> None:
    env = write(tmp_path / "env")
    script = source(env, ACTIVATE) + f"sh -c '{SHOW}. {env}/etc/conda/{DEACTIVATE}\n{SHOW}'"
    assert run(["bash"], script, {}) == [f"{env}/lib|1", "unset|unset"]


def facts(env: Path) -> Facts:
    return Facts("/w", env=EnvFacts(str(env), "ready", kind="conda"), conda=read(env, []), collected=("env", "conda"))


def test_check_without_files() -> None:
    env = EnvFacts("/w/.venv", "ready", kind="conda")
    hooks = tuple(Hook(name, text, True) for name, text in texts("/w/.venv").items())
    healthy = Facts("/w", env=env, conda=CondaFacts(hooks=hooks))
    assert check(PROFILE, healthy).status == "ok"
    assert check(dataclasses.replace(PROFILE, env_kind="venv"), healthy).status == "skipped"
    hidden = dataclasses.replace(hooks[0], text=None)
    assert check(PROFILE, dataclasses.replace(healthy, conda=CondaFacts(hooks=(hidden, hooks[1])))).status == "unknown"
    assert REQUIREMENT.plan is not None


def _missing(first: Path, _second: Path) -> None:
    shutil.rmtree(first.parent)


def _crlf(first: Path, second: Path) -> None:
    for path in (first, second):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def _edited(first: Path, _second: Path) -> None:
    first.write_text(first.read_text(encoding="utf-8") + "export WANDB_API_KEY=secret\n", encoding="utf-8")
    assert "secret" not in str(facts(first.parents[3]))


def _mode(_first: Path, second: Path) -> None:
    second.chmod(0o644)


def _guide(first: Path, second: Path) -> None:
    first.write_text(GUIDE[ACTIVATE], encoding="utf-8")
    second.write_text(GUIDE[DEACTIVATE], encoding="utf-8")


def _empty(_first: Path, second: Path) -> None:
    second.write_text("\n", encoding="utf-8")


def _dangling(first: Path, _second: Path) -> None:
    first.unlink()
    first.symlink_to("/nowhere")


def _of_another_place(first: Path, second: Path) -> None:
    first.write_text(texts("/elsewhere/.venv")[ACTIVATE], encoding="utf-8")
    second.write_text(texts("/elsewhere/.venv")[DEACTIVATE], encoding="utf-8")


@pytest.mark.parametrize(
    ("fault", "words", "moved"),
    [
        (_missing, "is missing", 0),
        (_crlf, "CRLF", 2),
        (_edited, "is not the text that ucllm writes", 1),
        (_mode, "is not executable", 0),
        (_guide, "the guide's own", 2),
        (_empty, "is empty", 1),
        (_of_another_place, "is not the text that ucllm writes", 2),
        (_dangling, "is missing", 1),
    ],
)
def test_break_detect_fix_undo(tmp_path: Path, fault: Callable[[Path, Path], None], words: str, moved: int) -> None:
    workspace = Workspace(tmp_path / "ws")
    env = write(workspace.env)
    assert check(PROFILE, facts(env)).status == "ok"
    first, second = (env / "etc" / "conda" / name for name in (ACTIVATE, DEACTIVATE))
    fault(first, second)
    broken = {path: path.read_bytes() for path in (first, second) if path.exists()}
    found = check(PROFILE, facts(env))
    assert found.status == "fail"
    assert words in "\n".join(found.evidence)
    assert found.remedy is not None
    assert found.remedy.automatic
    journal = Journal(workspace)
    for action in plan(PROFILE, facts(env), workspace):
        action.act(Recorder(journal, 1, REQUIREMENT.id, lambda _text: None))
    assert check(PROFILE, facts(env)).status == "ok"
    (fix,) = fixes(journal)
    assert len(fix.moves) == moved
    undo(journal, fix)
    if fault not in (_missing, _dangling):
        assert {path: path.read_bytes() for path in broken} == broken
        assert check(PROFILE, facts(env)).status == "fail"


def test_other_hooks_are_not_read(tmp_path: Path) -> None:
    env = write(tmp_path / "env")
    other = env / "etc" / "conda" / "activate.d" / "mine.sh"
    other.write_text("export HF_TOKEN=hf_x\n", encoding="utf-8")
    assert Hook("activate.d/mine.sh", "", False) in facts(env).conda.hooks
    assert check(PROFILE, facts(env)).status == "ok"
