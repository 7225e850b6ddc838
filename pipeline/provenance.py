"""Which stages made a file: found by following the manifests from it back to the text it came from.

Nothing here belongs to a stage's inputs, so that a manifest that differs only in its timings makes nothing stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.runs import describe, read_manifest

#: What of a manifest may leave the machine. ``argv`` and the paths of files stay.
_PUBLIC_KEYS = ("stage", "status", "fingerprint", "versions", "machine", "started", "seconds", "checks_skipped")


def maker(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The manifest of the run that wrote ``path`` (``None``: nobody says so), and the sha256 it recorded for it.

    It lies beside the output (a recipe's run directory) or in ``NAME.ucllm/STAGE`` beside it (files of the user's own).
    """
    for home in (path.parent, *sorted(path.parent.glob("*.ucllm/*"))):
        manifest = read_manifest(home)
        for entry in (manifest or {}).get("outputs", {}).values():
            # By name, not by path: a workspace may have been moved.
            if Path(entry["path"]).name == path.name:
                return manifest, str(entry["sha256"])
    return None, ""


def check_unaltered(path: Path) -> None:
    """Raises :class:`UcllmError` when ``path`` is no longer what the stage that wrote it recorded."""
    manifest, recorded = maker(path)
    if manifest is None:
        return
    known = next(entry for entry in manifest["outputs"].values() if Path(entry["path"]).name == path.name)
    if describe(path, known)["sha256"] != recorded:
        raise UcllmError(
            "input.altered",
            _("{path} was altered after stage {stage} wrote it.").format(path=path, stage=manifest["stage"]),
            _("Its sha256 is not the one in that stage's manifest."),
            _("Run `ucllm train {stage}` to make it anew, or copy it elsewhere to use it as it is.").format(
                stage=manifest["stage"]
            ),
        )


def history(path: Path) -> list[dict[str, Any]]:
    """The manifests of every stage that led to ``path``, the first stage first; empty for files of unknown origin.

    A manifest counts only if the sha256 it recorded for its output is the one that the next stage read.
    """
    found: dict[str, dict[str, Any]] = {}

    def visit(place: Path, sha256: str) -> None:
        manifest, recorded = maker(place)
        if manifest is None or recorded != sha256 or manifest["fingerprint"] in found:
            return
        for entry in manifest["inputs"].values():
            visit(Path(entry["path"]), str(entry["sha256"]))
        found[manifest["fingerprint"]] = manifest

    manifest, recorded = maker(path)
    if manifest is not None:
        visit(path, recorded)
    return list(found.values())


def public(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without what is the user's own business: the command line, and where files lie."""
    content = {key: manifest[key] for key in _PUBLIC_KEYS if key in manifest}
    for side in ("inputs", "outputs"):
        content[side] = {
            name: {
                "name": Path(entry["path"]).name,
                "sha256": entry["sha256"],
                "bytes": sum(each["size"] for each in entry["files"].values()),
            }
            for name, entry in manifest[side].items()
        }
    content["config"] = without_paths(manifest["config"])
    content["metrics"] = without_paths(manifest["metrics"])
    return content


def without_paths(value: Any) -> Any:
    """``value`` with every path in its texts reduced to the last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~", "./", "../")) and "\n" not in value:
        return Path(value).name
    # Inside a sentence a path ends at the next blank: what remains of a name with blanks is no longer a place.
    words = value.split(" ")
    return " ".join(Path(word).name if word.startswith(("/", "~/", "./", "../")) else word for word in words)
