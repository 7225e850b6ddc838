"""`kill -9` of setup anywhere, then the same command: the same files as an undisturbed setup."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bootstrap.conftest import Tiny, content


def _kill(child: subprocess.Popen[str], *, group: bool) -> None:
    if group:
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.communicate()


def _wait_for(condition: Callable[[], bool], child: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def _processes_in(folder: Path) -> list[str]:
    """The command lines of living processes that name ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:  # it ended while we looked
                continue
            if str(folder) in line:
                found.append(line)
    return found


def _python(tiny: Tiny) -> bool:
    return (tiny.env / "bin" / "python").exists()


def _file(pattern: str) -> Callable[[Tiny], bool]:
    return lambda tiny: any(tiny.env.glob(f"lib/python3*/site-packages/{pattern}"))


#: From nothing: when the kill comes. The names say what is there by then.
EARLY: list[tuple[str, Callable[[Tiny], bool]]] = [
    ("the state folder", lambda tiny: (tiny.workspace / ".ucllm" / "lock").exists()),
    ("the environment's folder", lambda tiny: tiny.env.exists()),
    ("its Python", _python),
    ("a part of pip", _file("pip/_vendor")),
    ("pip", _file("pip-*.dist-info/RECORD")),
]
#: With an environment that has only pip.
LATE: list[tuple[str, Callable[[Tiny], bool]]] = [
    ("pip at work", lambda tiny: (tiny.workspace / ".ucllm" / "logs" / "env.packages.txt").exists()),
    ("a module of torch", _file("torch/__init__.py")),
    ("torch's metadata", _file("torch-*.dist-info/METADATA")),
    ("torch", _file("torch-*.dist-info/RECORD")),
    ("a module of alpha", _file("alpha.py")),
    ("alpha's own RECORD", _file("alpha-*.dist-info/RECORD")),
    ("the last package", _file("beta-*.dist-info")),
]


@pytest.mark.parametrize(
    "group", [pytest.param(True, marks=pytest.mark.slow), False], ids=["the whole group", "the tool only"]
)
@pytest.mark.parametrize(("moment", "reached"), EARLY[1::2], ids=[item[0] for item in EARLY[1::2]])
def test_killed_while_it_makes_the_environment(
    empty: Tiny, template: Path, moment: str, reached: Callable[[Tiny], bool], group: bool
) -> None:
    _converges(empty, content(template / "ws" / ".venv"), moment, reached, group)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "reached"), EARLY[::2], ids=[item[0] for item in EARLY[::2]])
def test_killed_at_another_moment_while_it_makes_the_environment(
    empty: Tiny, template: Path, moment: str, reached: Callable[[Tiny], bool]
) -> None:
    _converges(empty, content(template / "ws" / ".venv"), moment, reached, group=True)


@pytest.mark.parametrize(
    ("number", "moment", "reached"),
    [(number, *item) for number, item in enumerate(LATE)],
    ids=[item[0] for item in LATE],
)
@pytest.mark.slow
def test_killed_while_pip_works(healthy: Tiny, number: int, moment: str, reached: Callable[[Tiny], bool]) -> None:
    expected = content(healthy.env)
    for pattern in ("alpha*", "beta*", "torch*"):
        for path in healthy.site.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (healthy.env / "bin" / "alpha-cli").unlink()
    _converges(healthy, expected, moment, reached, group=number % 2 == 0)


def _converges(tiny: Tiny, expected: dict[str, str], moment: str, reached: Callable[[Tiny], bool], group: bool) -> None:
    child = tiny.start("setup", "--profile", "tiny", "--yes")
    _wait_for(lambda: reached(tiny), child)
    assert child.poll() is None, f"setup had ended before there was {moment}"
    _kill(child, group=group)
    again = tiny.setup()
    assert again.code == 0, again.err
    assert tiny.doctor().code == 0
    found = content(tiny.env)
    assert {name for name in expected if found.get(name) != expected[name]} == set()
    assert set(found) == set(expected)
    assert not _processes_in(tiny.workspace)


def test_what_the_tool_started_ends_with_it(healthy: Tiny) -> None:
    """A child that ignores SIGTERM and has started a grandchild: both end, and the lock is held until they have."""
    marker = healthy.root / "started"
    script = healthy.root / "stubborn.sh"
    script.write_text(f"trap '' TERM\nsh -c 'trap \"\" TERM; sleep 61 & wait' {marker} &\ntouch {marker}\nwait\n")
    healthy.patch = (
        "import bootstrap.host as host, bootstrap.guard\n"
        "real = host.run_logged\n"
        f"host.run_logged = lambda argv, **options: real(('sh', {str(script)!r}), **options)"
    )
    (healthy.site / "beta.py").rename(healthy.root / "beta.py")
    next(healthy.site.glob("beta-*")).rename(healthy.root / "beta.dist-info")
    child = healthy.start("doctor", "--fix", "--yes")
    _wait_for(marker.exists, child)
    assert len(_processes_in(healthy.root)) >= 3
    child.kill()
    child.communicate()
    healthy.patch = ""
    began = time.monotonic()
    second = healthy.doctor("--fix", "--yes")
    assert second.code == 0, second.err
    # It waited for the stubborn ones, who got their grace, and said so.
    assert f"Waiting for process {child.pid}" in second.err
    assert time.monotonic() - began > 1
    assert not _processes_in(healthy.root)


def test_a_second_setup_waits_and_names_the_owner(healthy: Tiny) -> None:
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    slow = (
        "import bootstrap.host as host, time\n"
        "real = host.run_logged\n"
        "def slow(*args, **options): time.sleep(1.5); real(*args, **options)\n"
        "host.run_logged = slow"
    )
    healthy.patch = slow
    first = healthy.start("setup", "--profile", "tiny", "--json")
    lock = healthy.workspace / ".ucllm" / "lock"
    _wait_for(lambda: lock.exists() and lock.read_text() == str(first.pid), first)
    second = healthy.setup()
    assert first.communicate()[0]
    assert (first.returncode, second.code) == (0, 0)
    assert f"Waiting for process {first.pid}, which is changing this workspace." in second.err
    assert second.json["data"]["actions"] == [], "the first had done it all"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_130_and_resumable(healthy: Tiny, number: signal.Signals) -> None:
    for path in healthy.site.glob("beta*"):
        path.rename(healthy.root / path.name)
    marker = healthy.root / "started"
    healthy.patch = (
        "import bootstrap.host as host\n"
        "real = host.run_logged\n"
        f"host.run_logged = lambda argv, **o: real(('sh', '-c', 'touch {marker}; sleep 62'), **o)"
    )
    child = healthy.start("setup", "--profile", "tiny", "--json")
    _wait_for(marker.exists, child)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert '"code": "interrupted"' in out
    assert "Traceback" not in err
    assert not [line for line in _processes_in(healthy.root) if "sleep" in line]
    assert healthy.journal()[-1]["status"] == "interrupted"
    healthy.patch = ""
    assert healthy.setup().code == 0
