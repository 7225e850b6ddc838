"""Tiny pure-Python wheels and a profile made of them, so that setup can really run without a network."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def build(
    folder: Path, name: str, version: str, *, command: str = "", text: str = "", code: str = "", requires: str = ""
) -> Path:
    """A wheel with one module and, with ``command``, one console script. ``text`` changes its bytes, not its name.

    ``code`` is added to the module, ``requires`` is one requirement.
    """
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    # torch says in a file of its own what it was built for.
    stem = "torch/__init__" if name == "torch" else name
    content = {
        f"{stem}.py": f'"""{name} {version}. {text}"""\n\n\ndef main() -> None:\n    print("{name} {version}")\n{code}',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: ucllm-tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name == "torch":
        content["torch/version.py"] = f"__version__ = '{version}'\ncuda = None\n"
    if command:
        content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{command} = {name}:main\n"
    record = [f"{path},sha256={_digest(body)},{len(body.encode())}" for path, body in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, body in content.items():
            # The date is fixed, so that the same wheel has the same hash in every worker.
            archive.writestr(zipfile.ZipInfo(path, (2024, 1, 1, 0, 0, 0)), body)
    return wheel


def sdist(files: Mapping[str, bytes]) -> bytes:
    """A source distribution: a tar archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def _digest(body: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body.encode()).digest()).decode().rstrip("=")


def pin(wheel: Path, marker: str = "") -> str:
    """The lock's lines for this wheel."""
    name, version = wheel.name.split("-")[:2]
    condition = f" ; {marker}" if marker else ""
    return f"{name}=={version}{condition} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


_PROFILE = """profile_version = 1
description = "A profile of three tiny packages"
recipe = "botchan-tiny"
requirements = ["env.python", "env.packages"]

[engines]
pretrain = "torch"
finetune = "trl"

[python]
versions = [{pythons}]

[packages]
locks = ["requirements.lock"]

[torch]
lock = "torch.lock"
default_lock = "torch-default.lock"
index = "{cpu_index}"
default_download_gb = 2.7
default_disk_gb = 4.6
"""


def write_profile(
    locks: Path,
    name: str,
    files: Mapping[str, str],
    *,
    cpu_index: Path,
    pythons: str = '"3.10", "3.11", "3.12", "3.13"',
) -> None:
    """A profile folder with these lock files. ``cpu_index`` is a folder of wheels, as pip's --find-links reads it."""
    folder = locks / name
    folder.mkdir(parents=True, exist_ok=True)
    text = _PROFILE.format(cpu_index=cpu_index, pythons=pythons)
    (folder / "profile.toml").write_text(text, encoding="utf-8")
    for file, lock in files.items():
        (folder / file).write_text(lock, encoding="utf-8")


def write_tiny(root: Path) -> None:
    """``root/locks/{tiny,other}`` and ``root/wheels``.

    alpha has a command, beta a marker that holds, gamma one that does not; ``torch-9.9+cpu`` is the stand-in for the
    CPU wheel and ``torch-9.9`` with ``cudathing`` the one for the index's default.
    """
    wheels, default = root / "wheels", root / "default-wheels"
    alpha, beta = build(wheels, "alpha", "1.0", command="alpha-cli"), build(wheels, "beta", "2.0")
    newer, gamma = build(wheels, "alpha", "1.1", command="alpha-cli"), build(wheels, "gamma", "3.0")
    cpu_torch = build(wheels, "torch", "9.9+cpu")
    torch, cudathing = build(default, "torch", "9.9"), build(default, "cudathing", "1.0")
    locks = {
        "torch.lock": pin(cpu_torch),
        "torch-default.lock": pin(torch) + pin(cudathing),
        "requirements.lock": pin(alpha)
        + pin(beta, "python_full_version >= '3.10'")
        + pin(gamma, "python_version < '3'"),
    }
    (root / "no-wheels").mkdir(exist_ok=True)
    write_profile(root / "locks", "tiny", locks, cpu_index=root / "no-wheels")
    write_profile(root / "locks", "other", {**locks, "requirements.lock": pin(newer)}, cpu_index=root / "no-wheels")
