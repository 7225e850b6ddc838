"""`--deep` imports real modules that crash, hang, or write into the user's home."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bootstrap.facts import deep
from tests.bootstrap.conftest import Tiny

ABORT = "import os; os.abort()\n"
SEGFAULT = "import ctypes; ctypes.string_at(0)\n"
LEAVE = "import os; os._exit(0)\n"
HANG = "import time; time.sleep(600)\n"
#: A program that outlives the module which waits for it holds the output that it inherited.
HANG_ON_A_PROGRAM = "import subprocess; subprocess.run(['sleep', '20'])\n"
#: In compiled code and deaf to a request, with the interpreter's lock held.
HANG_DEEP = "import ctypes; ctypes.PyDLL(None).sleep(600)\n"


def write(tiny: Tiny, **modules: str) -> str:
    """Put modules into the environment; its Python."""
    for name, code in modules.items():
        (tiny.site / f"{name}.py").write_text(code, encoding="utf-8")
    return str(tiny.env / "bin" / "python")


@pytest.mark.parametrize("code", [ABORT, SEGFAULT, LEAVE])
def test_a_crash_leaves_the_others_to_be_tried(healthy: Tiny, code: str) -> None:
    python = write(healthy, first=code, second="import nowhere\n", third=code)
    errors, seconds = deep.import_all(python, ["first", "second", "third", "alpha"])
    assert list(errors) == ["first", "second", "third", "alpha"]
    assert errors["first"].startswith("the process ended while importing it (exit code ")
    assert errors["second"] == "ModuleNotFoundError: No module named 'nowhere'"
    assert errors["third"] == errors["first"]
    assert errors["alpha"] == ""
    assert seconds.keys() == {"second", "alpha"}


def test_the_last_words_of_a_crash(healthy: Tiny) -> None:
    python = write(healthy, first="import os\nos.write(2, b'OMP: Error #15\\n')\nos.abort()\n")
    errors, _seconds = deep.import_all(python, ["first"])
    assert errors["first"] == "the process ended while importing it (exit code -6): OMP: Error #15"


@pytest.mark.parametrize("code", [HANG, HANG_ON_A_PROGRAM, HANG_DEEP])
def test_a_hang_is_of_the_module_that_hangs(healthy: Tiny, code: str) -> None:
    python = write(healthy, slow=code)
    began = time.monotonic()
    errors, seconds = deep.import_all(python, ["alpha", "slow", "beta"], timeout_s=6)
    assert errors == {"alpha": "", "slow": "the import did not end in 3 s", "beta": ""}
    assert seconds.keys() == {"alpha", "beta"}
    assert time.monotonic() - began < 6


def test_a_python_that_does_not_start_blames_in_its_own_words(healthy: Tiny) -> None:
    python = write(healthy, sitecustomize="import os\nos.write(2, b'no\\n')\nos._exit(3)\n")
    assert deep.import_all(python, ["alpha", "beta"]) == ({"alpha": "no", "beta": "no"}, {})
    assert deep.compare_files(python)["unread"] == ("no",)


def test_imports_neither_see_nor_write_the_home(healthy: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / ".cache").mkdir(parents=True)
    (home / ".secret").write_text("mine", encoding="utf-8")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    code = """
import os, pathlib
assert not os.path.exists(os.path.expanduser("~/.secret"))
for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME"):
    folder = pathlib.Path(os.environ[name])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "written").touch()
"""
    before = sorted(home.rglob("*"))
    errors, _seconds = deep.import_all(write(healthy, curious=code), ["curious"])
    assert errors == {"curious": ""}
    assert sorted(home.rglob("*")) == before
    assert "HF_DATASETS_CACHE" in deep.PLACES
    assert os.environ["HOME"] == str(home)
