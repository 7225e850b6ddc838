"""From a fresh clone to a trained model: wall time, peak memory, an up-to-date run, and start-up.

Needs what the README needs: python3, make, git and a package index. HOME and pip's cache are empty folders.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def tree_memory(pid: int) -> int:
    """Bytes of resident memory of a process and all below it, shared pages counted once each process."""
    total, waiting = 0, [pid]
    while waiting:
        current = waiting.pop()
        try:
            status = Path(f"/proc/{current}/statm").read_text(encoding="ascii").split()
            total += int(status[1]) * resource.getpagesize()
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting += [int(item) for item in (task / "children").read_text(encoding="ascii").split()]
        except (OSError, IndexError):
            continue
    return total


def timed(argv: list[str], cwd: Path, env: dict[str, str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes (sampled every 50 ms) of a command that must succeed."""
    began = time.monotonic()
    child = subprocess.Popen(argv, cwd=cwd, env=env, stdout=subprocess.DEVNULL)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, tree_memory(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = child.wait()
    done.set()
    watcher.join()
    if code != 0:
        sys.exit(f"{argv} failed with exit code {code}")
    return time.monotonic() - began, peak


def cpu_seconds(argv: list[str], cwd: Path, env: dict[str, str], runs: int = 15) -> float:
    """Median CPU seconds (user + system) of a command, after one warm-up."""
    found = []
    for _run in range(runs + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, cwd=cwd, env=env, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(found[1:])


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/first_run-DATE.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone, home = Path(folder) / "ucllm", Path(folder) / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
        env = {**os.environ, "HOME": str(home)}
        everything, _peak = timed(["make", "train"], clone, env)
        ucllm = [str(clone / ".tool" / "bin" / "ucllm")]
        noop = [timed([*ucllm, "train", "all", "--workspace", "workspace"], clone, env)[0] for _run in range(5)]
        training, peak = timed([*ucllm, "train", "all", "--force", "--workspace", "workspace"], clone, env)
        python = str(clone / ".tool" / "bin" / "python")
        helping = cpu_seconds([*ucllm, "--help"], clone, env)
        click = cpu_seconds([python, "-c", "import click"], clone, env)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
        left = sorted(item.name for item in home.iterdir())
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        "make_train_from_nothing_s": round(everything, 1),
        "train_all_s": round(training, 1),
        "train_all_up_to_date_s": round(statistics.median(noop), 3),
        "train_all_peak_memory_mib": round(peak / 2**20),
        "help_cpu_s": round(helping, 4),
        "import_click_cpu_s": round(click, 4),
        "help_over_import_click": round(helping / click, 2),
        "git_status_clean": not status.stdout,
        "left_in_home": left,
    }
    print(json.dumps(result, indent=1))
    if options.save:
        target = REPOSITORY / "benchmarks" / "results" / f"first_run-{result['date']}.json"
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
