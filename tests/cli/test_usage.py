"""Help, mistakes and what every command promises, whatever it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.stages import STAGES
from tests.bootstrap.conftest import Tiny
from tests.conftest import REPOSITORY, UCLLM, cli_environment

COMMANDS = [
    [],
    ["setup"],
    ["doctor"],
    ["run"],
    ["shell"],
    ["status"],
    ["train"],
    ["train", "all"],
    *(["train", info.name] for info in STAGES),
]
HEAVY = {"rich", "yaml", "pydantic", "httpx", "asyncio", "torch", "psutil", "numpy", "packaging", "tarfile"}


def _run(home: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**cli_environment(home), **variables}
    return subprocess.run(
        [*UCLLM, *args],
        env=env,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom bootstrap.cli import main\nsys.argv = ['ucllm', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=cli_environment(tmp_path), capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "click" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(item) or "ucllm" for item in COMMANDS])
def test_help(tmp_path: Path, command: list[str]) -> None:
    done = _run(tmp_path, *command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {' '.join(['ucllm', *command])}")
    assert "\x1b" not in done.stdout


def test_help_lists_every_stage(tmp_path: Path) -> None:
    listed = _run(tmp_path, "train", "--help").stdout
    assert [name for name in ["all", *(info.name for info in STAGES)] if f"  {name} " not in listed] == []


def test_without_a_command_the_help_is_shown_and_it_is_no_success(tmp_path: Path) -> None:
    done = _run(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ucllm"), "and not as an error"


@pytest.mark.parametrize(
    ("args", "code", "words", "hint"),
    [
        (["docter"], "usage", "no command `docter`", "Did you mean `doctor`?"),
        (["train", "pretrian"], "usage", "no command `pretrian`", "Did you mean `pretrain`?"),
        (["doctor", "--fixx"], "usage", "--fixx", "Did you mean `--fix`?"),
        (["doctor", "extra"], "usage", "extra", "See `ucllm doctor --help`."),
        (["doctor", "--profile", "cpuu"], "profile.unknown", "no profile `cpuu`", "Did you mean `cpu`?"),
        (
            ["train", "all", "--recipe", "botchn"],
            "recipe.unknown",
            "no recipe `botchn`",
            "Did you mean `botchan-tiny`?",
        ),
        (["train", "all", "--set", "x"], "config.syntax", "has no `=`", "Write `--set pretrain.steps=100`."),
        (["train", "tokenizer", "--vocab-size", "many"], "usage", "many", "See `ucllm train tokenizer --help`."),
        (["train", "all", "--engine", "torchh"], "config.invalid-value", "it must be one of torch", ""),
    ],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_mistake_is_exit_2_with_a_hint(
    tmp_path: Path, args: list[str], code: str, words: str, hint: str, as_json: bool
) -> None:
    done = _run(tmp_path, *args, *(["--json"] if as_json else []))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    if as_json:
        report = json.loads(done.stdout)  # exactly one object, also when the command line itself is wrong
        assert list(report) == ["ucllm_result_version", "command", "status", "exit_code", "data", "errors"]
        assert report["exit_code"] == 2
        found = [(item["code"], item["hint"]) for item in report["errors"] if words in item["message"]]
        assert found == [(code, hint)]
        assert report["command"] == " ".join(args[: 2 if args[0] == "train" else 1])
    else:
        assert done.stdout == ""
        assert words in done.stderr
        assert hint in done.stderr
        assert "\x1b" not in done.stderr


def test_all_problems_of_a_configuration_at_once(tmp_path: Path) -> None:
    settings = ["pretrain.step=1", "pretrain.seed=x", "model.heads=7", "nothing"]
    args = [word for setting in settings for word in ("--set", setting)]
    done = _run(tmp_path, "train", "all", "--json", *args)
    assert done.returncode == 2
    codes = [item["code"] for item in json.loads(done.stdout)["errors"]]
    assert sorted(codes) == ["config.contradiction", "config.invalid-value", "config.syntax", "config.unknown-key"]


@pytest.mark.parametrize(("option", "shown"), [([], False), (["-v"], True)])
def test_a_traceback_only_for_those_who_ask(tmp_path: Path, option: list[str], shown: bool) -> None:
    code = (
        "import sys, bootstrap.runner as runner\n"
        "def broken(*args, **more): raise RuntimeError('a bug of ours')\n"
        "runner.diagnose = broken\n"
        "from bootstrap.cli import main\nmain()"
    )
    argv = [sys.executable, "-c", code, "doctor", "--workspace", str(tmp_path / "ws"), *option]
    done = subprocess.run(argv, env=cli_environment(tmp_path), capture_output=True, text=True, check=False)
    assert ("Traceback" in done.stderr) == shown
    assert "a bug of ours" in done.stderr
    assert done.returncode == (1 if shown else 70)


def test_a_reader_that_goes_away_is_no_crash(tmp_path: Path) -> None:
    command = f"{sys.executable} -m bootstrap setup --dry-run --workspace {tmp_path / 'ws'}"
    code = f"{command} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", code], env=cli_environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("value", ["1", ""])
def test_no_color(tmp_path: Path, value: str) -> None:
    """Colours on a terminal; none with NO_COLOR, which counts when it is not empty."""
    import pty

    controller, terminal = pty.openpty()
    env = {**cli_environment(tmp_path), "NO_COLOR": value, "TERM": "xterm"}
    argv = [*UCLLM, "doctor", "--workspace", str(tmp_path / "ws"), "--profile", "cpu"]
    child = subprocess.Popen(argv, env=env, stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path)
    assert child.wait(60) == 1
    os.close(terminal)
    said = os.read(controller, 65536).decode()
    os.close(controller)
    assert "env.python" in said
    assert ("\x1b[" in said) == (value == "")


# Which workspace, which profile, and why.


def _report(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    data: dict[str, object] = json.loads(done.stdout)["data"]
    return data


def test_the_workspace_is_the_option_the_variable_the_nearest_parent_or_the_seeds(tmp_path: Path) -> None:
    home, nested = tmp_path / "home", tmp_path / "marked" / "a" / "b"
    home.mkdir()
    nested.mkdir(parents=True)
    argv = [*UCLLM, "doctor", "--json"]

    def workspace(*args: str, **variables: str) -> object:
        env = {**cli_environment(home), **variables}
        done = subprocess.run([*argv, *args], env=env, cwd=nested, capture_output=True, text=True, check=False)
        return _report(done)["workspace"]

    assert workspace() == str(home / "ucllm_nedo_dev" / "train")
    (tmp_path / "marked" / ".ucllm").mkdir()
    assert workspace() == str(home / "ucllm_nedo_dev" / "train"), "a folder alone marks no workspace"
    (tmp_path / "marked" / ".ucllm" / "workspace.json").write_text('{"profile": "cpu"}', encoding="utf-8")
    assert workspace() == str(tmp_path / "marked")
    assert workspace(UCLLM_WORKSPACE="x") == str(nested / "x")
    assert workspace("--workspace", "y", UCLLM_WORKSPACE="x") == str(nested / "y")
    assert list(home.iterdir()) == []


def test_the_profile_is_the_option_the_variable_the_record_or_detected(healthy: Tiny) -> None:
    record = healthy.workspace / ".ucllm" / "workspace.json"

    def chosen(*args: str, **variables: str) -> object:
        healthy.variables.update({"UCLLM_PROFILE": "", **variables})
        return healthy.doctor(*args).json["data"]["profile"]

    asked = "it was asked for"
    assert chosen() == {"name": "tiny", "reason": "the workspace was set up with it"}
    assert chosen(UCLLM_PROFILE="other") == {"name": "other", "reason": asked}
    assert chosen("--profile", "tiny", UCLLM_PROFILE="other") == {"name": "tiny", "reason": asked}
    for broken in ("", "[]", "{}", "not json"):
        record.write_text(broken, encoding="utf-8")
        healthy.variables["UCLLM_PROFILE"] = ""
        seen = healthy.doctor()
        # Detection knows the real names only, of which this locks folder has none.
        assert (seen.code, seen.json["errors"][0]["code"]) == (2, "profile.unknown")


@pytest.mark.parametrize(
    ("gpu", "scheduler", "torch", "names", "expected"),
    [
        (True, True, True, ("host", "gcp-2024.02", "cpu"), "host"),
        (True, False, False, ("host", "gcp-2024.02", "cpu"), "gcp-2024.02"),
        (False, True, False, ("host", "gcp-2024.02", "cpu"), "gcp-2024.02"),
        (False, False, False, ("host", "gcp-2024.02", "cpu"), "cpu"),
        (True, True, True, ("cpu",), "cpu"),
    ],
)
def test_detection(
    gpu: bool, scheduler: bool, torch: bool, names: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bootstrap import profiles

    monkeypatch.setattr(profiles, "profile_names", lambda: list(names))
    name, reason = profiles.detect(gpu, scheduler, torch)
    assert name == expected
    assert reason


def test_a_cuda_torch_in_an_active_virtual_environment_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python is a link to one that has no torch."""
    from bootstrap.cli.base import _active_python_has_cuda_torch

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert not _active_python_has_cuda_torch()
    library = tmp_path / "lib" / "python3.11" / "site-packages" / "torch" / "lib" / "libtorch_cuda.so"
    library.parent.mkdir(parents=True)
    library.touch()
    assert _active_python_has_cuda_torch()


def test_the_readmes_have_no_other_exit_codes_than_ours() -> None:
    """The codes that scripts rely on, pinned where they are made."""
    from pipeline.train import exit_code

    assert {info.name: exit_code(info.name) for info in STAGES} == {
        "tokenizer": 11,
        "corpus": 12,
        "pretrain": 12,
        "convert": 13,
        "upload-pretrained": 13,
        "finetune": 14,
        "upload-finetuned": 15,
    }
    assert (REPOSITORY / "locks" / "cpu" / "profile.toml").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert", "--input", "a", "b", "--tokenizer", "t.model"), "convert reads one --input, not 2."),
        (("tokenizer", "--engine", "torch"), "tokenizer has no engines to choose from."),
        (("pretrain", "--engine", "nonsense"), "torch"),
    ],
)
def test_options_that_mean_nothing_are_refused(healthy: Tiny, words: tuple[str, ...], said: str) -> None:
    outcome = healthy("train", *words, "--dry-run")
    assert outcome.code == 2
    assert said in outcome.err
