"""What an environment does when its Python starts: prints are no fault, and a file that ends Python is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootstrap.facts import deep
from bootstrap.facts import env as env_facts
from tests.bootstrap.conftest import Tiny, content

PRINTS = {
    "a line": "print('hello')",
    "no newline": "import sys; sys.stdout.write('hello'); sys.stdout.flush()",
    "JSON": "print('[1, 2]')",
    "the standard error": "import sys; sys.stderr.write('a warning')",
    "at exit": "import atexit; atexit.register(print, 'bye')",
    "another standard output": "import io, sys; sys.stdout = io.StringIO()",
    "a failing end": "import atexit, os; atexit.register(os._exit, 3)",
    "an error": "raise RuntimeError('hello')",
}


def start_up(tiny: Tiny, name: str, code: str) -> Path:
    """A start-up file of the environment that runs ``code``."""
    file = tiny.site / name
    # A line of a .pth file is run if it begins with an import.
    file.write_text(f"import sys; exec({code!r})\n" if name.endswith(".pth") else f"{code}\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ["sitecustomize.py", "loud.pth"])
@pytest.mark.parametrize("code", PRINTS.values(), ids=PRINTS)
def test_what_start_up_files_print_is_no_fault(healthy: Tiny, name: str, code: str) -> None:
    start_up(healthy, name, code)
    before = content(healthy.env, skip=())
    facts = env_facts.read(healthy.env)
    assert (facts.state, facts.dists["alpha"].version) == ("ready", "1.0")
    python = str(healthy.env / "bin" / "python")
    assert deep.import_all(python, ["alpha"])[0] == {"alpha": ""}
    assert deep.compare_files(python)["missing"] == {}
    assert content(healthy.env, skip=()) == before, "looking leaves nothing behind"


ENDS = {
    "leaves": "import sys; sys.exit(3)",
    "leaves as if all were well": "import sys; sys.exit(0)",
    "leaves at once": "import os; os._exit(3)",
    "crashes": "import os; os.abort()",
    "is interrupted": "raise KeyboardInterrupt",
}


@pytest.mark.parametrize("name", ["sitecustomize.py", "bad.pth"])
@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_a_start_up_file_that_ends_python_is_named(healthy: Tiny, name: str, code: str) -> None:
    start_up(healthy, "a.pth", "print('an innocent one')")
    file = start_up(healthy, name, code)
    facts = env_facts.read(healthy.env)
    assert facts.state == "broken"
    assert facts.error.startswith(f"{file}, which Python runs when it starts, ends it: ")


def test_doctor_hears_through_prints_and_names_who_ends_python(healthy: Tiny) -> None:
    start_up(healthy, "a.pth", "print('hello', end='')")
    assert healthy.doctor().statuses == {"env.python": "ok", "env.packages": "ok"}
    file = start_up(healthy, "sitecustomize.py", "import sys; sys.exit(3)")
    seen = healthy.doctor()
    assert seen.statuses == {"env.python": "fail", "env.packages": "blocked"}
    (failing,) = [item for item in seen.json["data"]["findings"] if item["status"] == "fail"]
    assert f"{file}, which Python runs when it starts, ends it: SystemExit: 3" in failing["evidence"]
    file.unlink()
    assert healthy.doctor().code == 0


def test_a_path_file_that_is_no_text(healthy: Tiny) -> None:
    file = healthy.site / "bad.pth"
    file.write_bytes(b"\xff\xfe\n")
    facts = env_facts.read(healthy.env)
    if facts.state != "ready":  # from Python 3.12 on such a file is read all the same
        assert str(file) in facts.error
        assert "UnicodeDecodeError" in facts.error
