"""Whether the files of an environment's conda packages are those that were installed, by conda's own records."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

#: What tells which distribution lies there.
_METADATA = re.compile(r"\.(dist|egg)-info/(METADATA|PKG-INFO)$")


def compare(env: Path) -> tuple[dict[str, tuple[str, ...]], int]:
    """The altered or missing files of each conda package in ``env``, and how many files were looked at.

    Byte code is passed over, as are packages that pip has replaced. A link, and a text whose hash in this environment
    nobody noted, only has to be there.
    """
    found: dict[str, list[str]] = {}
    checked = 0
    with ThreadPoolExecutor() as pool:
        for name, path, right in pool.map(_look, _recorded(env)):
            checked += 1
            if not right:
                found.setdefault(name, []).append(path)
    return {name: tuple(paths) for name, paths in sorted(found.items())}, checked


def _recorded(env: Path) -> Iterator[tuple[str, Path, str]]:
    """Package, file, and the sha256 it must have (empty: none is known)."""
    for file in sorted((env / "conda-meta").glob("*.json")):
        try:
            record: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            paths = [item for item in record["paths_data"]["paths"] if not str(item["_path"]).endswith(".pyc")]
            name = str(record["name"])
        except (OSError, ValueError):
            yield file.stem.rsplit("-", 2)[0], file, "unreadable"
            continue
        except (KeyError, TypeError):  # of a conda from before it noted hashes
            continue
        if _replaced(env, [str(item["_path"]) for item in paths]):
            continue
        for item in paths:
            known = item.get("sha256_in_prefix") or ("" if item.get("prefix_placeholder") else item.get("sha256"))
            yield name, env / item["_path"], known or "" if item.get("path_type", "hardlink") == "hardlink" else ""


def _replaced(env: Path, paths: list[str]) -> bool:
    """Whether pip has put another distribution in a package's place, as it does with the pip that conda brings."""
    metadata = next((path for path in paths if _METADATA.search(path)), "")
    if not metadata:
        return False
    try:
        installer = (env / metadata).with_name("INSTALLER").read_text(encoding="utf-8", errors="replace")
    except OSError:
        installer = "conda"  # nobody says
    return installer.strip() != "conda" or not (env / metadata).exists()


def _look(item: tuple[str, Path, str]) -> tuple[str, str, bool]:
    name, path, sha256 = item
    try:
        if not sha256:
            return name, str(path), os.path.lexists(path)
        with path.open("rb") as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError:  # what cannot be read is of no use to the environment either
        return name, str(path), False
    return name, str(path), digest.hexdigest() == sha256
