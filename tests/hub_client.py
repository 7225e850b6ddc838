"""Runs one operation of the real huggingface_hub client and prints the outcome as one JSON object.

A child process of the tests, because the client reads its environment (endpoint, cache, Xet or not) once, at import:

    python hub_client.py push '{"repo": "tester/name", "folder": "model", "private": true}'
    {"ok": true, "value": "<commit id>"}
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any


def digest(path: Path) -> str:
    """What a file holds, short enough for a JSON line."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(client: Any, operation: str, args: dict[str, Any]) -> Any:
    """Carry out one operation and return what the test compares."""
    api = client.HfApi()
    if operation == "whoami":
        return api.whoami()["name"]
    if operation == "create":
        return str(api.create_repo(args["repo"], private=args.get("private"), exist_ok=args.get("exist_ok", False)))
    if operation == "push":
        api.create_repo(args["repo"], private=args.get("private"), exist_ok=True)
        return api.upload_folder(repo_id=args["repo"], folder_path=args["folder"]).oid
    if operation == "publish":
        return api.update_repo_settings(args["repo"], private=False)
    if operation == "pull":
        folder = Path(client.snapshot_download(args["repo"]))
        return {p.relative_to(folder).as_posix(): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    if operation == "download":
        return digest(Path(client.hf_hub_download(args["repo"], args["file"], revision=args.get("revision"))))
    raise SystemExit(f"unknown operation: {operation}")


def main() -> None:
    """Print {"ok": true, "value": ...} or {"ok": false, "error": class, "causes": [...], "message": ...}."""
    # By name, so that the type checker does not need the library in the test suite's own environment.
    client = importlib.import_module("huggingface_hub")
    try:
        outcome: dict[str, Any] = {"ok": True, "value": run(client, sys.argv[1], json.loads(sys.argv[2]))}
    except Exception as error:  # noqa: BLE001 - the test compares it
        causes = []
        cause = error.__cause__
        while cause is not None:
            causes.append(type(cause).__name__)
            cause = cause.__cause__
        outcome = {"ok": False, "error": type(error).__name__, "causes": causes, "message": str(error)}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
