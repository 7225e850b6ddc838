"""The conda client: py-rattler in a process of its own, started as a script by :mod:`bootstrap.conda`.

    python -I client.py JOB.json

``resolve`` turns a lock or exact specs into records, ``install`` links packages whose archives were checked already.
The answer, or what went wrong, is written to the file that the job names. A process of its own because py-rattler can
crash when Python ends, after its work is done, and because a native library that hangs can be ended only from outside.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

Job = dict[str, Any]


async def resolve(job: Job) -> Job:
    """The records of the job's lock for its platform, or those that its specs come to."""
    import rattler
    from rattler.channel.channel_priority import ChannelPriority

    if job["lock"]:
        environment = rattler.LockFile.from_path(Path(job["lock"])).default_environment()
        found = (environment.conda_repodata_records() if environment else {}).get(job["subdir"], [])
        return {"packages": [json.loads(record.to_json()) for record in found]}
    subdirs = [job["subdir"], "noarch"]
    gateway = rattler.Gateway(cache_dir=Path(job["cache"]))
    known = {name.normalized for name in await gateway.names(job["channels"], subdirs)}
    found = await rattler.solve(
        job["channels"],
        # As texts they would be read strictly, and builds with dots, such as pytorch's, refused.
        [rattler.MatchSpec(spec) for spec in job["specs"]],
        gateway=gateway,
        platforms=subdirs,
        virtual_packages=[
            rattler.GenericVirtualPackage(
                rattler.PackageName(name), rattler.Version(version), rattler.BuildString(build)
            )
            for name, version, build in job["virtual"]
        ],
        channel_priority=ChannelPriority.Flexible,  # what conda does unless it is told otherwise
        add_pip_as_python_dependency="pip" in known,  # as conda does
    )
    return {"packages": [json.loads(record.to_json()) for record in found]}


async def install(job: Job) -> Job:
    """Unpack the archives, then link all that is to change in one go: nothing is downloaded here."""
    import asyncio

    import rattler
    from rattler.package_streaming import extract

    prefix, unpacked = Path(job["prefix"]), Path(job["unpacked"])
    shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
    unpacked.mkdir(parents=True)
    for leftover in (prefix / "conda-meta").glob("prefix_record_*"):  # as above: rattler had not renamed them yet
        leftover.unlink()
    turns = asyncio.Semaphore(min(8, os.cpu_count() or 1))

    async def unpack(package: Job) -> None:
        # The name under which rattler looks for a package that it need not download.
        target = unpacked / "{name}-{version}-{build}".format(**package)
        async with turns:
            await asyncio.to_thread(extract, Path(package["archive"]), target)

    await asyncio.gather(*(unpack(package) for package in job["packages"] if package["archive"]))
    await rattler.install(
        [_record(package, unpacked) for package in job["packages"]],
        prefix,
        cache_dir=unpacked,
        reinstall_packages=set(job["again"]),
        ignored_packages=set(job["ignored"]),
        execute_link_scripts=True,  # as conda does
        show_progress=False,
    )
    for path in (prefix / "conda-meta").glob("*.json"):  # rattler writes them for their owner alone
        path.chmod(path.stat().st_mode | 0o444)
    shutil.rmtree(unpacked)  # the environment's files are links to these: who edits one would edit both
    return {}


def _record(package: Job, scratch: Path) -> Any:
    """The record as rattler gave it when it was resolved."""
    import rattler

    file = scratch / "record.json"
    file.write_text(json.dumps({key: value for key, value in package.items() if key != "archive"}), encoding="utf-8")
    known = rattler.PackageRecord.from_index_json(file, package.get("size"), package["sha256"], package.get("md5"))
    return rattler.RepoDataRecord(known, package["fn"], package["url"], package["channel"])


def main() -> None:
    """Do the job; what was foreseeable is answered with the reason, anything else is a traceback and an exit code."""
    import asyncio

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path.append(job["path"])
    answer = Path(job["answer"])
    try:
        import rattler.exceptions as known
    except ImportError as error:
        answer.write_text(json.dumps({"error": "import", "text": str(error)}), encoding="utf-8")
        return
    reasons = {
        "unsolvable": (known.SolverError, known.InvalidMatchSpecError),
        "channel": (known.GatewayError, known.FetchRepoDataError, known.InvalidChannelError, known.InvalidUrlError),
        "lock": (known.ParseCondaLockError,),
        "install": (known.ExtractError, known.InstallerError, known.LinkError, known.TransactionError, known.IoError),
    }
    try:
        said = asyncio.run({"resolve": resolve, "install": install}[job["do"]](job))
    except tuple(kind for kinds in reasons.values() for kind in kinds) as error:
        why = next(name for name, kinds in reasons.items() if isinstance(error, kinds))
        said = {"error": why, "text": str(error)}
    answer.write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # past rattler's own end, which crashes with some Pythons
