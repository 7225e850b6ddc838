"""A stand-in for the ``conda`` command, over py-rattler, for conda-lock alone: it answers the two calls that one makes.

    python executable.py --version
    python executable.py create --prefix DIR --dry-run --json [--override-channels] [--channel C]... SPEC...

``create`` solves and prints, as conda does, what would be fetched and linked; without ``--dry-run`` it refuses. The
platform and virtual packages come from ``CONDA_SUBDIR`` and ``CONDA_OVERRIDE_*``, which conda-lock sets. What goes
wrong is the ``message`` of the JSON, with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Said as conda says it. The version is that of the real one that gave the same locks.
VERSION = "conda 23.10.0 (ucllm, over py-rattler)"


def virtual_packages() -> list[tuple[str, str, str]]:
    """Name, version and build of the virtual packages that ``CONDA_OVERRIDE_*`` name."""
    found = []
    for key, value in sorted(os.environ.items()):
        name = "__" + key.removeprefix("CONDA_OVERRIDE_").lower()
        if key.startswith("CONDA_OVERRIDE_") and value:
            found.append((name, "1", value) if name == "__archspec" else (name, value, "0"))
    return found


def is_virtual(channel: str) -> bool:
    """Whether this is the channel that conda-lock makes of the virtual packages: they are known from the variables."""
    return channel.startswith("file://") and "/conda-lock-fake-repodata-" in channel


async def solve(channels: Sequence[str], specs: Sequence[str], cache: Path) -> list[dict[str, Any]]:
    """The records of what the specs come to, without pip: conda-lock asks conda to leave it out."""
    import rattler
    from rattler.channel.channel_priority import ChannelPriority

    found = await rattler.solve(
        list(channels),
        # Not as text, which is read strictly: pytorch's builds have dots (`py3.9_cuda11.8_cudnn8.7.0_0`).
        [rattler.MatchSpec(spec) for spec in specs],
        gateway=rattler.Gateway(cache_dir=cache),
        platforms=[rattler.Subdir(os.environ["CONDA_SUBDIR"]), "noarch"],
        virtual_packages=[
            rattler.GenericVirtualPackage(
                rattler.PackageName(name), rattler.Version(version), rattler.BuildString(build)
            )
            for name, version, build in virtual_packages()
        ],
        channel_priority=ChannelPriority.Flexible,  # what conda does unless it is told otherwise
    )
    return [json.loads(record.to_json()) for record in found]


def create(words: Sequence[str]) -> int:
    """Print the plan of ``conda create --dry-run --json``, or why there is none."""
    import asyncio

    from bootstrap.conda import channel_urls

    parser = argparse.ArgumentParser(prog="conda create", allow_abbrev=False)
    for option in ("--dry-run", "--json", "--override-channels"):
        parser.add_argument(option, action="store_true", required=option != "--override-channels")
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--channel", action="append", default=[])
    parser.add_argument("specs", nargs="*")
    asked = parser.parse_args(words)
    named = [channel for channel in asked.channel if not is_virtual(channel)]
    channels = [url for channel in named for url in channel_urls(channel, Path.cwd())]
    try:
        import rattler.exceptions as known

        cache = Path(os.environ["CONDA_PKGS_DIRS"]) / "repodata"  # made by conda-lock for this one lock
        records = asyncio.run(solve(channels, asked.specs, cache))
    except ImportError as error:
        return _answer({"success": False, "exception_name": "ImportError", "message": str(error)})
    except (
        known.SolverError,
        known.InvalidMatchSpecError,
        known.GatewayError,
        known.FetchRepoDataError,
        known.InvalidChannelError,
        known.InvalidUrlError,
    ) as error:
        return _answer({"success": False, "exception_name": type(error).__name__, "message": str(error)})
    return _answer(
        {
            "success": True,
            "dry_run": True,
            "prefix": asked.prefix,
            "actions": {"PREFIX": asked.prefix, "FETCH": records, "LINK": records},
        }
    )


def _answer(said: dict[str, Any]) -> int:
    print(json.dumps(said))
    return 0 if said["success"] else 1


def main() -> int:
    """Answer the call; anything that conda-lock does not ask is refused."""
    words = sys.argv[1:]
    if words == ["--version"]:
        print(VERSION)
        return 0
    if words[:1] == ["create"]:
        return create(words[1:])
    print(f"ucllm's conda answers `--version` and `create --dry-run --json`, not: {' '.join(words)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # of `bootstrap`, instead of this folder
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # past rattler's own end, which crashes with some Pythons
