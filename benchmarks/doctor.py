"""`ucllm doctor` against its peers, in turns in one run: `torch.utils.collect_env` and DeepSpeed's `ds_report`.

    .tool/bin/python benchmarks/doctor.py [--workspace WORKSPACE] [--megatron-cpu WORKSPACE] [--save]

The workspaces must hold an environment (`make setup`; for ds_report one with DeepSpeed). Nothing is changed in them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
UCLLM = [sys.executable, "-m", "bootstrap"]


def seconds(argv: list[str]) -> float:
    """Wall seconds of a command, whatever its exit code: a report that finds something is a report too."""
    began = time.perf_counter()
    subprocess.run(argv, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def first_line(argv: list[str]) -> float:
    """Seconds until the command's first line."""
    began = time.perf_counter()
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        output = child.stdout or sys.exit("no output")
        output.readline()
        took = time.perf_counter() - began
        output.read()
    return took


def median_of(runs: dict[str, list[str]], rounds: int) -> dict[str, float]:
    """The median of each command, run in turns so that a busy moment meets all of them. One round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, argv in runs.items():
            took = (first_line if name == "first line" else seconds)(argv)
            if number:
                taken[name].append(took)
    return {name: round(statistics.median(values), 3) for name, values in taken.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=REPOSITORY / "workspace")
    parser.add_argument("--megatron-cpu", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write to results/ with the date")
    options = parser.parse_args()
    python = str(options.workspace / ".venv" / "bin" / "python")
    place = ["--workspace", str(options.workspace), "--profile", "cpu"]
    doctor = [*UCLLM, "doctor", *place]
    results: dict[str, object] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "cpu, seconds (median)": median_of(
            {
                "doctor": doctor,
                "first line": doctor,
                "collect_env": [python, "-m", "torch.utils.collect_env"],
                "import torch": [python, "-c", "import torch"],
                "doctor --deep": [*doctor, "--deep"],
            },
            options.rounds,
        ),
    }
    if options.megatron_cpu:
        report = str(options.megatron_cpu / ".venv" / "bin" / "ds_report")
        theirs = [*UCLLM, "doctor", "--workspace", str(options.megatron_cpu), "--profile", "megatron-cpu"]
        results["megatron-cpu, seconds (median)"] = median_of({"doctor": theirs, "ds_report": [report]}, options.rounds)
    text = json.dumps(results, indent=1)
    print(text)
    if options.save:
        out = Path(__file__).parent / "results" / f"doctor-{results['date']}.json"
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
