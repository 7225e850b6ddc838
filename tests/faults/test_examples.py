"""The reports in `docs/examples`: what the doctor prints of composed facts stays what is shown there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from bootstrap import facts as f
from bootstrap import profiles
from tests.conftest import REPOSITORY, UCLLM, cli_environment
from tests.faults.synthetic import WORKSPACE, changed, l4_node

EXAMPLE = REPOSITORY / "docs" / "examples" / "synthetic-l4.txt"
FAULTS = {
    "builds.helpers.files": ("helpers.cpython-311-x86_64-linux-gnu.so",),
    "builds.helpers.loads": "ImportError: no helpers.cpython-39-x86_64-linux-gnu.so",
    "builds.fused_kernels.lock": f.Lock(
        f"{WORKSPACE}/Megatron-DeepSpeed/megatron/fused_kernels/build/lock", age_s=9000
    ),
    "env.dists.transformers": f.Dist("4.57.0"),
    "machine.disks.shm.free": 64 << 20,
}


def test_the_report_of_a_composed_l4_node(tmp_path: Path) -> None:
    """`UCLLM_UPDATE_EXAMPLES=1` writes the example anew."""
    facts = l4_node(profiles.load("gcp-2024.02"))
    for path, new in FAULTS.items():
        facts = changed(facts, path, new)
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(facts.as_json()), encoding="utf-8")
    done = subprocess.run(
        [*UCLLM, "doctor", "--facts", str(file)], env=cli_environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    said = done.stdout.replace(str(REPOSITORY), "ucllm")
    if os.environ.get("UCLLM_UPDATE_EXAMPLES"):
        EXAMPLE.write_text(said, encoding="utf-8")
    assert said == EXAMPLE.read_text(encoding="utf-8")
