"""The guide's two traps, on the real Megatron-DeepSpeed at the guide's commit: found, mended, right at the next start.

``UCLLM_TEST_MEGATRON`` names a git repository that has it. Nothing of it is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap.facts import Facts, collect
from bootstrap.profiles import Source
from tests.bootstrap.megatron import FOREIGN, Site, add_pybind11, make_site
from tests.bootstrap.test_sources import git

#: The guide's tag ``ucllm_nedo_dev_v20240205.1.0`` (UPSTREAM, pins of the seed).
TAG, COMMIT = "ucllm_nedo_dev_v20240205.1.0", "38364302c100afd162de872d45ec20a4acdc95a8"

_USES = """
import sys, numpy
sys.path.insert(0, sys.argv[1])
import helpers
sizes = numpy.array([5, 5, 5], dtype=numpy.int32)
order = numpy.array([0, 1, 2], dtype=numpy.int32)
print(helpers.__file__, helpers.build_sample_idx(sizes, order, 4, 1, 15).shape)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The real thing, cloned by the fix of `source.megatron`, and a virtual environment."""
    mirror = os.environ.get("UCLLM_TEST_MEGATRON")
    if not mirror or not Path(mirror).is_dir():
        pytest.skip("UCLLM_TEST_MEGATRON names no repository of Megatron-DeepSpeed")
    made = make_site(tmp_path, monkeypatch, source=Source(mirror, "Megatron-DeepSpeed", TAG, COMMIT))
    add_pybind11(made)
    assert made.check("source.megatron", sources(made)).status == "fail"
    made.fix("source.megatron", sources(made))
    assert made.check("source.megatron", sources(made)).status == "ok"
    return made


def sources(site: Site) -> Facts:
    """The facts of the checkouts."""
    return collect.collect(site.profile, site.workspace, ("sources",))


def is_untouched(site: Site) -> bool:
    """Whether git sees the checkout as it was cloned; what is built is ignored by its own .gitignore."""
    status = git("-C", site.checkout, "status", "--porcelain")
    return not status and git("-C", site.checkout, "rev-parse", "HEAD", f"{TAG}^{{commit}}").split() == [COMMIT] * 2


def test_trap_1_helpers_named_for_another_python(site: Site) -> None:
    site.make()  # what the first start of training does
    assert [path.name for path in site.data.glob("helpers*.so")] == [f"helpers{FOREIGN}"]
    found = site.check("build.helpers")
    assert (found.status, "named for another Python" in found.summary) == ("fail", True)
    assert f"`make` will name it helpers{FOREIGN}" in "\n".join(found.evidence)

    site.fix("build.helpers")
    assert site.check("build.helpers").status == "ok"
    assert is_untouched(site)
    (built,) = site.data.glob("helpers*.so")

    # The next start of training, first with nothing to do, then with everything to build again.
    stamp = built.stat().st_mtime_ns
    site.make()
    assert built.stat().st_mtime_ns == stamp
    built.unlink()
    site.make()
    assert list(site.data.glob("helpers*.so")) == [built]
    assert site.check("build.helpers").status == "ok"
    assert is_untouched(site)

    if subprocess.run([site.workspace.python, "-Ic", "import numpy"], capture_output=True, check=False).returncode == 0:
        argv = [str(site.workspace.python), "-c", _USES, str(site.data)]
        said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        assert said.splitlines()[-1] == f"{built} (4, 2)"


def test_trap_2_a_stale_lock_of_the_fused_kernels(site: Site) -> None:
    assert site.check("build.fused-kernels").status == "ok"
    site.build.mkdir()
    holds = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); time.sleep(60)"
    builder = subprocess.Popen([sys.executable, "-c", holds, site.build / "lock"], stdout=subprocess.PIPE)
    assert builder.stdout
    builder.stdout.readline()
    assert site.check("build.fused-kernels").status == "warn", "it is being built"
    builder.kill()
    builder.wait()
    builder.stdout.close()
    found = site.check("build.fused-kernels")
    assert (found.status, "left its lock" in found.summary) == ("fail", True)
    site.fix("build.fused-kernels")
    assert site.check("build.fused-kernels").status == "ok"
    assert site.build.is_dir()
    assert is_untouched(site)
    site.undo()
    assert (site.build / "lock").exists()


def test_the_guides_own_remedy_is_seen_and_replaced(site: Site) -> None:
    """It edits the Makefile: the checkout is then not the one that was pinned."""
    makefile = site.data / "Makefile"
    text = makefile.read_text(encoding="utf-8")
    makefile.write_text(text.replace("python3-config", shutil.which("python3-config") or ""), encoding="utf-8")
    found = site.check("source.megatron", sources(site))
    assert (found.status, "megatron/data/Makefile" in "\n".join(found.evidence)) == ("fail", True)
    site.fix("source.megatron", sources(site))
    assert site.check("source.megatron", sources(site)).status == "ok"
    assert is_untouched(site)
