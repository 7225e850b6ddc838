"""`ucllm setup`: a first workspace, the same again (nothing to do), and a second one from the cache of built wheels.

    .tool/bin/python benchmarks/setup.py --profile megatron-cpu --folder DIR [--save]

DIR/first and DIR/second are made there, and DIR/cache holds the built wheels; what is there already is used, and its
times are read from its journal. Compiling and installing are told apart, because downloads depend on the network.
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
ROUNDS = 7


def setup(profile: str, workspace: Path, cache: Path) -> float:
    """Wall seconds of a setup that must succeed."""
    argv = [sys.executable, "-m", "bootstrap", "setup", "--yes", "--profile", profile, "--workspace", str(workspace)]
    began = time.perf_counter()
    env = {**os.environ, "UCLLM_CACHE": str(cache)}
    done = subprocess.run(argv, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - began


def steps(workspace: Path) -> dict[str, dict[str, float]]:
    """Seconds of what was compiled or installed from what is compiled, by requirement: its first build, its install."""
    found: dict[str, dict[str, float]] = {}
    for line in (workspace / ".ucllm" / "journal.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        name = str(entry.get("requirement", ""))
        if entry.get("status") == "done" and (name.startswith("ops.") or name == "build.megatron"):
            kind = "build" if entry["action"].startswith("Build ") else "install"
            found.setdefault(name, {}).setdefault(kind, entry["seconds"])
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="megatron-cpu")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--save", action="store_true", help="write to results/ with the date")
    options = parser.parse_args()
    folder = options.folder.absolute()
    first, second, cache = folder / "first", folder / "second", folder / "cache"
    whole = {name: setup(options.profile, place, cache) for name, place in (("first", first), ("second", second))}
    nothing = [setup(options.profile, first, cache) for _round in range(ROUNDS)]
    of_first, of_second = steps(first), steps(second)
    compiled = sum(sum(times.values()) for times in of_first.values())
    from_cache = sum(sum(times.values()) for times in of_second.values())
    results = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "profile": options.profile,
        "nothing to do, seconds (median)": round(statistics.median(nothing), 3),
        "whole setup, seconds": {name: round(value, 1) for name, value in whole.items()},
        "first workspace, seconds": of_first,
        "second workspace, seconds": of_second,
        "compiled packages, seconds": {"first": round(compiled, 1), "second": round(from_cache, 1)},
        "compiled packages, times faster": round(compiled / from_cache, 1) if from_cache else None,
    }
    text = json.dumps(results, indent=1)
    print(text)
    if options.save:
        target = Path(__file__).parent / "results" / f"setup-{results['date']}.json"
        target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
