"""A run directory: what a stage made, from what, and whether that still holds.

``manifest.json`` is written last, by rename: a stage is done only if its manifest is whole, its outputs are the ones it
names, and its inputs and configuration are still those it was made from. Nothing is ever guessed from file names.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import canonical_json
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.launch import Launch

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
LOG = "log.txt"
#: How long a new run waits for a lock whose owner was just killed: its child needs a moment to die with it.
LOCK_WAIT_S = 3.0


@dataclass(frozen=True)
class StagePlan:
    """What a stage would do. Made without reading any file, so that a dry run needs nothing to exist.

    ``home`` holds manifest, log, lock and unfinished work. ``config`` is every value that decides the result, as JSON.
    ``inputs`` and ``outputs`` map a name to a file or folder. ``format`` rises when the stage's code changes what it
    makes from the same inputs. ``run`` reaches the stage as ``config["run"]`` but decides no result: changing it makes
    nothing stale. ``launch`` is what the stage's process will start in its turn, if the work is another program's: it
    reaches the stage as ``config["run"]["launch"]``. What no file holds (the name of a model on the Hub) belongs in
    ``config``.
    """

    stage: str
    home: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    format: int = 1
    run: Mapping[str, Any] = field(default_factory=dict)
    launch: Launch | None = None

    @property
    def work(self) -> Path:
        """Where the stage's process writes before anything is published."""
        return self.home / "work"


@dataclass(frozen=True)
class State:
    """Whether a stage must run. ``reason`` says why (empty: up to date). ``manifest`` is the valid one, if any."""

    reason: str
    manifest: Mapping[str, Any] | None = None
    fingerprint: str = ""
    inputs: Mapping[str, Any] | None = None


def sha256_file(path: Path) -> str:
    """The sha256 of a file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe(path: Path, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``{"path", "sha256", "files": {relative: {"size", "mtime_ns", "sha256"}}}`` of a file or a whole folder.

    ``known`` is an earlier description: files whose size and modification time are unchanged are not read again.
    Raises ``FileNotFoundError`` when there is nothing at ``path``.
    """
    recorded = (known or {}).get("files", {})
    names = sorted(_walk(path)) if path.is_dir() else [""]
    files: dict[str, dict[str, Any]] = {}
    for name in names:
        status = (path / name).stat()
        entry = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        before = recorded.get(name)
        same = before is not None and all(before.get(key) == value for key, value in entry.items())
        files[name] = {**entry, "sha256": before["sha256"] if same else sha256_file(path / name)}
    content = {name: entry["sha256"] for name, entry in files.items()}
    digest = content[""] if "" in content else hashlib.sha256(canonical_json(content).encode()).hexdigest()
    return {"path": str(path), "sha256": digest, "files": files}


def _walk(folder: Path) -> Iterator[str]:
    for root, _folders, names in os.walk(folder):
        for name in names:
            yield str((Path(root) / name).relative_to(folder))


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_manifest(home: Path) -> dict[str, Any] | None:
    """The manifest in ``home`` if it is whole, else ``None``."""
    try:
        manifest = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and _is_whole(manifest) else None


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has everything that the code here reads of it, in the form it expects."""
    if manifest.get("manifest_version") != MANIFEST_VERSION or manifest.get("status") != "complete":
        return False
    tables = [manifest.get(key) for key in ("config", "inputs", "outputs", "metrics")]
    if "stage" not in manifest or "fingerprint" not in manifest or not all(isinstance(item, dict) for item in tables):
        return False
    described = [*manifest["inputs"].values(), *manifest["outputs"].values()]
    return all(
        isinstance(entry, dict)
        and {"path", "sha256", "files"} <= entry.keys()
        and isinstance(entry["files"], dict)
        and all(isinstance(file, dict) and "sha256" in file for file in entry["files"].values())
        for entry in described
    )


def write_manifest(home: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` so that it is either the old one or the whole new one, also after a power cut."""
    write_text_atomically(home / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by rename, after the new content is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def examine(plan: StagePlan, seen: Mapping[str, Any] | None = None) -> State:
    """Compare what the plan wants with what the run directory holds. ``seen`` are inputs that were just described.

    Raises :class:`UcllmError` when an input is missing.
    """
    manifest = read_manifest(plan.home)
    inputs: dict[str, Any] = {}
    for name, path in plan.inputs.items():
        known = (seen or (manifest or {}).get("inputs", {})).get(name)
        try:
            inputs[name] = describe(path, known if known and known["path"] == str(path) else None)
        except OSError as error:
            raise UcllmError(
                "input.missing",
                _("{stage} cannot read its input {path}.").format(stage=plan.stage, path=path),
                str(error.strerror),
                _("Check the path, or run the earlier stages first: `ucllm train all`."),
            ) from error
    content = {name: entry["sha256"] for name, entry in inputs.items()}
    identity = {"stage": plan.stage, "format": plan.format, "config": plan.config, "inputs": content}
    fingerprint = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
    return State(_why(plan, manifest, inputs, fingerprint), manifest, fingerprint, inputs)


def _why(plan: StagePlan, manifest: Mapping[str, Any] | None, inputs: Mapping[str, Any], fingerprint: str) -> str:
    """Why the stage must run; empty when it need not."""
    if manifest is None:
        if (plan.home / MANIFEST).exists():
            return _("its manifest is damaged")
        return _("it was interrupted") if plan.work.exists() else _("it has not run yet")
    if manifest["stage"] != plan.stage:
        return _("the folder holds another stage")
    changes = changed_settings(manifest["config"], plan.config)
    if changes:
        return _("changed: {changes}").format(changes=", ".join(changes))
    for name, entry in inputs.items():
        before = manifest["inputs"].get(name)
        if before is None or before["sha256"] != entry["sha256"]:
            return _("its input changed: {path}").format(path=entry["path"])
    if manifest["fingerprint"] != fingerprint:
        return _("it was made by another version of this stage")
    for name, path in plan.outputs.items():
        before = manifest["outputs"].get(name)
        if before is None or not path.exists():
            return _("its output is missing: {path}").format(path=path)
        if describe(path, before)["sha256"] != before["sha256"]:
            return _("its output was altered: {path}").format(path=path)
    if manifest["metrics"].get("stopped_by") == "hours" and manifest.get("run", {}).get("hours") != plan.run["hours"]:
        return _("pretrain.hours had ended it, and is another now")
    return ""


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``a.b 300 → 400`` for every value that differs, at most six."""
    changes: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += changed_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key} {old} → {new}")
    return changes[:6]


@contextlib.contextmanager
def locked(home: Path) -> Iterator[int]:
    """Hold the run directory against a second writer; yields the lock's file descriptor, for the child to inherit.

    The kernel drops the lock when the last process that holds it dies, so a killed run leaves nothing to clean up, and
    a child that outlives its parent keeps the directory its own. Raises :class:`UcllmError` if it is held.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UcllmError(
            "output.not-writable",
            _("Cannot write to {path}.").format(path=home),
            str(error.strerror),
            _("Choose a folder you may write to, with `--workspace DIR` or `--output`."),
        ) from error
    try:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    owner = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
                    raise UcllmError(
                        "run.locked",
                        _("Another run is writing to {path}.").format(path=home),
                        _("Its owner is {owner}.").format(owner=owner or _("not known")),
                        _("Wait for it to end, or stop it, then run the same command again."),
                    ) from error
                time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
