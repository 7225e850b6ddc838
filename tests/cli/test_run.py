"""`ucllm run` and `ucllm shell`: real commands and shells in environments like those that setup makes."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bootstrap import activation
from bootstrap.requirements.env_hooks import texts
from bootstrap.workspace import Workspace
from pipeline.errors import UcllmError
from tests.conftest import UCLLM, cli_environment

#: What a command sees of the caller's variables beside those that activation changes.
CALLER = {"LANG": "C", "A": "x y\nz", "EMPTY": "", "a.b": "dotted", "BASH_FUNC_f%%": "() { :; }", "SHLVL": "3"}


def write_hooks(env: Path) -> None:
    for name, text in texts(str(env)).items():
        path = env / "etc" / "conda" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def hook(env: Path, name: str, text: str) -> Path:
    path = env / "etc" / "conda" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A virtual environment, without pip."""
    workspace = Workspace(tmp_path / "it's a workspace")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", workspace.env], check=True)
    return workspace


@pytest.fixture
def conda(tmp_path: Path) -> Workspace:
    """An environment as conda makes it, with the hooks of setup."""
    workspace = Workspace(tmp_path / "conda workspace")
    (workspace.env / "bin").mkdir(parents=True)
    (workspace.env / "conda-meta").mkdir()
    workspace.python.symlink_to(sys.executable)
    write_hooks(workspace.env)
    return workspace


def start(ws: Workspace, words: Sequence[str | bytes], home: Path, **more: str) -> subprocess.Popen[bytes]:
    env = {**cli_environment(home), **more}
    return subprocess.Popen(
        [*UCLLM, "run", "--workspace", ws.root, "--", *words],
        env=env,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(ws: Workspace, *words: str | bytes, home: Path, **more: str) -> tuple[int, bytes, str]:
    child = start(ws, words, home, **more)
    out, err = child.communicate(timeout=60)
    return child.returncode, out, err.decode()


def seen(ws: Workspace, home: Path, env: dict[str, str]) -> dict[str, str]:
    """What `env` prints there, of exactly these variables."""
    words = [*UCLLM, "run", "--workspace", str(ws.root), "--", "/usr/bin/env", "-0"]
    needed = {name: value for name, value in cli_environment(home).items() if name.startswith(("PYTHON", "HOME"))}
    done = subprocess.run(words, env={**needed, **env}, cwd=home, capture_output=True, check=True)
    pairs = dict(item.split("=", 1) for item in os.fsdecode(done.stdout).rstrip("\0").split("\0"))
    return {name: value for name, value in pairs.items() if needed.get(name) != value}


def test_python_is_the_environments(ws: Workspace, tmp_path: Path) -> None:
    code, out, err = run(ws, "python", "-c", "import sys; print(sys.prefix)", home=tmp_path)
    assert (code, out.decode().strip(), err) == (0, str(ws.env), "")


def test_words_arrive_as_they_are_in_the_same_folder(ws: Workspace, tmp_path: Path) -> None:
    words = [b"", b"a b", b"'\"$HOME`", b"two\nlines", b"\xff\xfe", b"--workspace", b"--", b"-v", "日本".encode()]
    show = "import os, sys; print(os.getcwd(), [os.fsencode(word) for word in sys.argv[1:]])"
    code, out, _err = run(ws, "python", "-c", show, *words, home=tmp_path)
    assert (code, out.decode().strip()) == (0, f"{tmp_path} {words}")


@pytest.mark.parametrize("wanted", [0, 1, 7, 255])
def test_the_exit_code_is_the_commands(ws: Workspace, tmp_path: Path, wanted: int) -> None:
    assert run(ws, "sh", "-c", f"exit {wanted}", home=tmp_path)[0] == wanted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_go_to_the_command(ws: Workspace, tmp_path: Path, number: int) -> None:
    code = (
        f"import signal, sys\nsignal.signal({number}, lambda *_: sys.exit(42))\nprint('up', flush=True)\nsignal.pause()"
    )
    child = start(ws, ["python", "-c", code], tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode == 42
    plain = start(ws, ["sh", "-c", "echo up; exec sleep 60"], tmp_path)
    assert plain.stdout is not None
    plain.stdout.readline()
    plain.send_signal(number)
    plain.communicate(timeout=30)
    assert plain.returncode == -number


def test_a_pipe_that_nobody_reads_ends_the_command_as_anywhere(ws: Workspace, tmp_path: Path) -> None:
    """Python ignores SIGPIPE, and what it starts would too."""
    code, out, err = run(ws, "bash", "-c", 'yes | head -n 1; echo "${PIPESTATUS[0]}"', home=tmp_path)
    assert (code, out, err) == (0, b"y\n141\n", "")


def test_a_virtual_environment_changes_nothing_else(ws: Workspace, tmp_path: Path) -> None:
    before = {"PATH": "/usr/bin:/bin", "PYTHONHOME": "", **CALLER}
    after = seen(ws, tmp_path, before)
    own = {"PATH": f"{ws.env}/bin:/usr/bin:/bin", "VIRTUAL_ENV": str(ws.env), "VIRTUAL_ENV_PROMPT": ".venv"}
    assert after == {**CALLER, **own}


@pytest.mark.parametrize("library_path", [None, "", "/a:/b"])
def test_a_conda_environment_is_activated_with_its_hooks(
    conda: Workspace, tmp_path: Path, library_path: str | None
) -> None:
    env = conda.env
    hook(
        env, "activate.d/zz.sh", "export ORDER=${ORDER}z\nset -- x y\necho noise\nexport BYTES=$'\\xff'\nread -r WORD\n"
    )
    hook(env, "activate.d/aa.sh", "export ORDER=a${STATE}$CONDA_PREFIX\ncd /\n")
    hook(env, "activate.d/other.fish", "exit 1\n")
    (env / "conda-meta" / "state").write_text('{"env_vars": {"STATE": "s", "GONE": "***unset***", "b c": "x"}}')
    caller = {**CALLER, "PATH": "/usr/bin:/bin", "BASH_ENV": "/nonexistent", "SHELLOPTS": "nounset"}
    caller |= {} if library_path is None else {"LD_LIBRARY_PATH": library_path}
    own = {
        "PATH": f"{env}/bin:/usr/bin:/bin",
        "CONDA_PREFIX": str(env),
        "CONDA_DEFAULT_ENV": str(env),
        "CONDA_SHLVL": "1",
        "CONDA_PROMPT_MODIFIER": f"({env}) ",
        "STATE": "s",
        "ORDER": f"as{env}z",
        "BYTES": "\udcff",
        "LD_LIBRARY_PATH": f"{env}/lib" + (f":{library_path}" if library_path else ""),
        "PYTHONNOUSERSITE": "1",
        "UCLLM_HOOK_STATE": {None: "uu", "": "eu"}.get(library_path, "ku"),
    }
    assert seen(conda, tmp_path, caller) == {**caller, **own}


def test_twice_is_once(conda: Workspace, tmp_path: Path) -> None:
    """In a shell where it is active already, and one command in another."""
    code, out, _err = run(
        conda,
        *activation.prefix(conda),
        "printenv",
        "LD_LIBRARY_PATH",
        "CONDA_SHLVL",
        home=tmp_path,
        LD_LIBRARY_PATH="/a",
    )
    assert (code, out.decode()) == (0, f"{conda.env}/lib:/a\n1\n")


def test_another_environment_is_left(ws: Workspace, conda: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_hooks(other)
    hook(other, "deactivate.d/x.sh", "unset OF_OTHER\n")
    caller = {
        "PATH": f"/first:{other}/bin:{tmp_path}/base/bin:/usr/bin::/bin",
        "LD_LIBRARY_PATH": f"{other}/lib:/mine",
        "UCLLM_HOOK_STATE": "kk",
        "PYTHONNOUSERSITE": "1",
        "OF_OTHER": "1",
        "CONDA_PREFIX": str(other),
        "CONDA_PREFIX_1": str(tmp_path / "base"),
        "CONDA_SHLVL": "2",
        "CONDA_EXE": "/base/bin/conda",
    }
    in_conda = seen(conda, tmp_path, caller)
    assert in_conda["PATH"] == f"{conda.env}/bin:/first:/usr/bin::/bin"
    assert (in_conda["CONDA_PREFIX"], in_conda["CONDA_SHLVL"]) == (str(conda.env), "1")
    assert in_conda["LD_LIBRARY_PATH"] == f"{conda.env}/lib:/mine"
    in_venv = seen(ws, tmp_path, caller)
    assert in_venv == {
        "PATH": f"{ws.env}/bin:/first:/usr/bin::/bin",
        "LD_LIBRARY_PATH": "/mine",
        "PYTHONNOUSERSITE": "1",
        "CONDA_EXE": "/base/bin/conda",
        "VIRTUAL_ENV": str(ws.env),
        "VIRTUAL_ENV_PROMPT": ".venv",
    }
    caller = {"PATH": f"{other}/bin/:{ws.env}/bin:/bin", "VIRTUAL_ENV": str(other), "VIRTUAL_ENV_PROMPT": "(other) "}
    assert seen(ws, tmp_path, caller)["PATH"] == f"{ws.env}/bin:/bin"
    assert "VIRTUAL_ENV" not in seen(conda, tmp_path, caller)


def test_cuda_home_is_the_environments_nvcc_unless_it_is_set(ws: Workspace, tmp_path: Path) -> None:
    write_hooks(ws.env)
    assert "CUDA_HOME" not in seen(ws, tmp_path, {"PATH": "/bin"})
    nvcc = ws.env / "bin" / "nvcc"
    nvcc.touch(0o755)
    now = seen(ws, tmp_path, {"PATH": "/bin"})
    assert (now["CUDA_HOME"], now["LD_LIBRARY_PATH"]) == (str(ws.env), f"{ws.env}/lib")
    assert seen(ws, tmp_path, {"PATH": "/bin", "CUDA_HOME": "/cuda"})["CUDA_HOME"] == "/cuda"
    assert activation.variables(ws, {})["PATH"] == f"{ws.env}/bin:{os.defpath}"


def test_a_hook_that_ends_the_shell_is_named(conda: Workspace, tmp_path: Path) -> None:
    path = hook(conda.env, "activate.d/bad.sh", "echo why >&2\nexit 0\n")
    code, out, err = run(conda, "true", home=tmp_path)
    assert (code, out) == (2, b"")
    assert f"{path} ended the shell" in err
    assert "why" in err


def test_a_hook_that_hangs_is_not_waited_for(conda: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    hook(conda.env, "activate.d/bad.sh", "sleep 60\n")
    monkeypatch.setattr(activation, "TIMEOUT_S", 0.5)
    with pytest.raises(UcllmError, match="did not end"):
        activation.variables(conda)


def test_what_a_hook_leaves_running_is_not_waited_for(conda: Workspace, tmp_path: Path) -> None:
    hook(conda.env, "activate.d/daemon.sh", "sleep 20 >/dev/null 2>&1 &\n")
    began = time.monotonic()
    assert run(conda, "true", home=tmp_path)[0] == 0
    assert time.monotonic() - began < 15


def test_without_an_environment(tmp_path: Path, ws: Workspace) -> None:
    missing = Workspace(tmp_path / "a b")
    code, out, err = run(missing, "python", "--json", home=tmp_path)
    assert (code, out) == (2, b"")
    assert f"There is no Python environment in {missing.root}." in err
    assert f"ucllm setup --workspace '{missing.root}'" in err
    (ws.env / ".ucllm-unfinished").touch()
    assert "interrupted" in run(ws, "python", home=tmp_path)[2]


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        ("no-such-command", 127, "no such program in the environment"),
        ("./no-such-command", 127, "No such file"),
        ("./folder", 126, "Permission denied"),
        ("./plain", 126, "Permission denied"),
        ("./orphan", 126, "first line"),
        ("./bare", 9, ""),
    ],
)
def test_commands_that_cannot_start(ws: Workspace, tmp_path: Path, name: str, wanted: int, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("x")
    for script, text in (("orphan", "#!/no/such/shell\n"), ("bare", "exit $#\n")):
        (tmp_path / script).write_text(text)
        (tmp_path / script).chmod(0o755)
    code, out, err = run(ws, name, *"123456789", home=tmp_path)
    assert (code, out) == (wanted, b"")
    assert words in err
    assert ("error:" in err) == (wanted != 9)


def test_no_command_and_wrong_options(ws: Workspace, tmp_path: Path) -> None:
    assert "There is no command to run." in run(ws, home=tmp_path)[2]
    done = subprocess.run(
        [*UCLLM, "run", "--workspce", "x"], env=cli_environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--workspace" in done.stderr


def test_in_the_workspace_the_dashes_can_be_left_out(ws: Workspace, tmp_path: Path) -> None:
    ws.record("cpu")
    done = subprocess.run(
        [*UCLLM, "run", "python", "-c", "import sys; print(sys.prefix, sys.argv)", "--json"],
        env=cli_environment(tmp_path),
        cwd=ws.root,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"{ws.env} ['-c', '--json']")


def test_nothing_is_written(conda: Workspace, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    run(conda, "true", home=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_words_before_a_command(ws: Workspace, tmp_path: Path) -> None:
    words = [*activation.prefix(ws), "printenv", "VIRTUAL_ENV"]
    done = subprocess.run(words, env=cli_environment(tmp_path), cwd="/", capture_output=True, text=True)
    assert done.stdout.strip() == str(ws.env)


def shell(ws: Workspace, home: Path, typed: str, **more: str) -> str:
    """What a terminal shows of `ucllm shell` when these lines are typed."""
    pid, terminal = pty.fork()
    if pid == 0:
        env = {**cli_environment(home), "TERM": "dumb", **more}
        os.chdir(home)
        os.execve(sys.executable, [*UCLLM, "shell", "--workspace", str(ws.root)], env)  # noqa: S606
    shown = b""
    os.write(terminal, typed.encode())
    while True:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        shown += block
    os.close(terminal)
    _pid, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7, shown
    return shown.decode()


RC = """
export FROM_RC=yes
export PATH="/rc/bin:$PATH" LD_LIBRARY_PATH=/rc/lib CONDA_PREFIX=/rc/base
PS1='rc> '
"""
SHELLS = {"bash": ".bashrc", "zsh": ".zshrc", "dash": ".shrc", "fish": ".bashrc"}


@pytest.mark.parametrize("name", SHELLS)
def test_the_users_shell_with_what_their_files_say(conda: Workspace, tmp_path: Path, name: str) -> None:
    """And nothing in those undoes the environment. A shell that we do not know is not started: bash is."""
    path = shutil.which(name)
    if path is None and name != "fish":
        pytest.skip(f"there is no {name}")
    (tmp_path / SHELLS[name]).write_text(RC, encoding="utf-8")
    typed = 'printf "[%s|%s|%s|%s|%s]\\n" "$CONDA_PREFIX" "$PATH" "$LD_LIBRARY_PATH" "$FROM_RC" "${ZDOTDIR-}${ENV-}"\n'
    typed += 'set | grep "^UCLLM_[SFZE]"\nexit 7\n'
    home = {"HOME": str(tmp_path)}
    more = {"SHELL": path or "/usr/bin/fish", "PATH": "/usr/bin:/bin"} | (
        {"ENV": f"{tmp_path}/.shrc"} if name == "dash" else {}
    )
    shown = shell(conda, tmp_path, typed, **home, **more)
    env = conda.env
    (line,) = re.findall(r"\[/[^\]]*\]", shown)
    rest = f"{tmp_path}/.shrc" if name == "dash" else ""
    assert line == f"[{env}|{env}/bin:/rc/bin:/usr/bin:/bin|{env}/lib:/rc/lib|yes|{rest}]"
    assert "(.venv) rc> " in shown
    assert not [line for line in shown.splitlines() if line.startswith("UCLLM_")]


def test_zsh_with_a_folder_of_its_own(conda: Workspace, tmp_path: Path) -> None:
    path = shutil.which("zsh")
    if path is None:
        pytest.skip("there is no zsh")
    (tmp_path / "dots").mkdir()
    (tmp_path / ".zshenv").write_text(f"ZDOTDIR='{tmp_path}/dots'\n")
    (tmp_path / "dots" / ".zshrc").write_text(RC)
    shown = shell(conda, tmp_path, 'echo "[$ZDOTDIR|$FROM_RC|$CONDA_SHLVL]"\nexit 7\n', SHELL=path, ZDOTDIR="")
    assert f"[{tmp_path}/dots|yes|1]" in shown


def test_shell_needs_a_terminal_and_an_environment(ws: Workspace, tmp_path: Path) -> None:
    for place, words in ((ws.root, "ucllm run -- CMD ARGS..."), (tmp_path / "nowhere", "ucllm setup --workspace")):
        done = subprocess.run(
            [*UCLLM, "shell", "--workspace", place],
            env=cli_environment(tmp_path),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr


@pytest.mark.parametrize("name", [name for name in ("dash", "bash", "zsh") if shutil.which(name)])
def test_export_is_for_eval(conda: Workspace, tmp_path: Path, name: str) -> None:
    hook(conda.env, "activate.d/odd.sh", "export ODD=$'it\\'s\\n\\xff'\n")
    command = " ".join(f"'{word}'" for word in (*UCLLM, "shell", "--export", "--workspace", str(conda.root)))
    script = f'set -eu\neval "$({command})"\nprintf "%s|%s|%s" "$CONDA_PREFIX" "$ODD" "${{VIRTUAL_ENV-none}}"'
    env = {**cli_environment(tmp_path), "VIRTUAL_ENV": "/other"}
    done = subprocess.run([name, "-c", script], env=env, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == os.fsencode(f"{conda.env}|it's\n\udcff|none")
