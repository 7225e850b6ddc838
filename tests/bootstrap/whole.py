"""All of Step 0 on this machine: the conda profile of stand-ins, and stand-ins for what is cloned and compiled.

Real are conda's client, Python, pip, git, make and the C compiler. What stands in for DeepSpeed, apex, flash-attn,
Megatron-DeepSpeed and llm-jp-sft compiles a few lines of C each; it says what it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bootstrap import conda_channel, megatron, wheels
from tests.bootstrap.conftest import Outcome, Tiny

#: A build backend, in the tree of each stand-in: setuptools and wheel would have to come from an index.
_BACKEND = '''\
"""Stand-in of ucllm's tests for setuptools: compiles C with the system's compiler and writes a wheel."""
import base64, hashlib, json, os, pathlib, subprocess, sysconfig, zipfile

CODE = """#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "NAME", 0, -1, 0, 0, 0, 0, 0};
PyMODINIT_FUNC PyInit_NAME(void) { return PyModule_Create(&module); }
"""


def compiled(path):
    name = path.rpartition("/")[2]
    source = pathlib.Path(name + ".c")
    source.write_text(CODE.replace("NAME", name))
    target = name + sysconfig.get_config_var("EXT_SUFFIX")
    include = sysconfig.get_path("include")
    subprocess.run(["cc", "-shared", "-fPIC", "-I", include, str(source), "-o", target], check=True)
    return pathlib.Path(target).read_bytes()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    spec = json.loads(pathlib.Path("stand-in.json").read_text())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    files = {path: text.encode() for path, text in spec["files"].items()}
    options = (config_settings or {}).get("--build-option", [])
    options = [options] if isinstance(options, str) else options
    for path, option in spec["modules"].items():
        if not option or option in options:
            files[path + suffix] = compiled(path)
    if spec["ops"]:
        every = os.environ.get("DS_BUILD_OPS", "0")
        flag = {"async_io": "DS_BUILD_AIO"}
        built = {op: os.environ.get(flag.get(op, "DS_BUILD_" + op.upper()), every) == "1" for op in spec["ops"]}
        for op, path in spec["ops"].items():
            if built[op]:
                files[path + suffix] = compiled(path)
        import torch.version

        told = {"version": torch.version.__version__, "cuda_version": torch.version.cuda}
        files["deepspeed/git_version_info_installed.py"] = (
            f"version={spec['version']!r}\\ninstalled_ops={built!r}\\ncompatible_ops={dict.fromkeys(built, True)!r}\\n"
            f"torch_info={told!r}\\n"
        ).encode()
    base = spec["name"].replace("-", "_") + "-" + spec["version"]
    head = f"Metadata-Version: 2.1\\nName: {spec['name']}\\nVersion: {spec['version']}\\nSummary: stand-in\\n"
    files[base + ".dist-info/METADATA"] = head.encode()
    files[base + ".dist-info/WHEEL"] = b"Wheel-Version: 1.0\\nRoot-Is-Purelib: false\\nTag: py3-none-any\\n"
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip('=')},{len(body)}\\n"
        for path, body in files.items()
    )
    files[base + ".dist-info/RECORD"] = (record + base + ".dist-info/RECORD,,\\n").encode()
    name = base + "-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as archive:
        for path, body in files.items():
            archive.writestr(path, body)
    return name
'''
_PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
OPS = {"async_io": "deepspeed/ops/aio/async_io_op", "fused_adam": "deepspeed/ops/adam/fused_adam_op"}


def _tree(name: str, version: str, **spec: Any) -> dict[str, str]:
    """The files of a stand-in's source."""
    told = {"name": name, "version": version, "files": {}, "modules": {}, "ops": {}, **spec}
    return {"pyproject.toml": _PYPROJECT, "backend.py": _BACKEND, "stand-in.json": json.dumps(told, indent=1) + "\n"}


def _sdist(folder: Path, name: str, version: str, tree: Mapping[str, str]) -> str:
    """A source distribution among the wheels; returns its lock."""
    base = f"{name.replace('-', '_')}-{version}"
    files = {**tree, "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    body = wheels.sdist({f"{base}/{path}": text.encode() for path, text in files.items()})
    (folder / f"{base}.tar.gz").write_bytes(body)
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(body).hexdigest()}\n"


def commit(repository: Path, tree: Mapping[str, str], tag: str = "") -> str:
    """Commit these files to ``repository``, made if need be; returns the commit."""
    if not repository.exists():
        _git("init", "--quiet", str(repository))
    for path, text in tree.items():
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_text(text, encoding="utf-8")
    at = ("-C", str(repository))
    _git(*at, "add", "--all")
    _git(*at, "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "-m", "stand-in")
    if tag:
        _git(*at, "tag", "--force", tag)
    return _git(*at, "rev-parse", "HEAD")


def _git(*args: str) -> str:
    dates = {"GIT_AUTHOR_DATE": "2024-02-05T00:00:00Z", "GIT_COMMITTER_DATE": "2024-02-05T00:00:00Z"}
    env = {**os.environ, **dates, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *args], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _pybind11(folder: Path) -> Path:
    """The wheel of the pybind11 that the tests have, put together from what is installed."""
    megatron.pybind11_folder()
    dist = importlib.metadata.distribution("pybind11")
    wheel = folder / f"pybind11-{dist.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in dist.files or ():
            skipped = ".." in path.parts or path.suffix == ".pyc" or path.name in ("direct_url.json", "REQUESTED")
            if not skipped:
                text = Path(str(dist.locate_file(path))).read_bytes()
                if path.name == "RECORD":
                    lines = text.decode().splitlines(keepends=True)
                    text = "".join(line for line in lines if not line.startswith("..") and ".pyc" not in line).encode()
                archive.writestr(zipfile.ZipInfo(str(path), (2024, 1, 1, 0, 0, 0)), text)
    return wheel


@dataclass(frozen=True)
class Whole:
    """The profile's folder, and the repositories that it clones."""

    profile: Path
    apex: Path
    megatron: Path

    def pin_apex(self, commit_id: str) -> None:
        """Let the profile name another commit of apex."""
        path = self.profile / "profile.toml"
        head, _mark, tail = path.read_text(encoding="utf-8").partition("[sources.apex]")
        lines = [f'commit = "{commit_id}"' if line.startswith("commit") else line for line in tail.split("\n", 5)]
        path.write_text(f"{head}[sources.apex]" + "\n".join(lines), encoding="utf-8")


#: In the order of the seed's profile: what a machine without a GPU can have.
REQUIREMENTS = (
    "machine.system",
    "machine.compiler",
    "machine.build-tools",
    "machine.memory",
    "machine.disk",
    "machine.disk-tmp",
    "machine.tmp-exec",
    "env.miniconda",
    "env.conda-activate",
    "env.python",
    "machine.python-headers",
    "env.conda-packages",
    "env.conda-files",
    "env.hooks",
    "env.library-path",
    "env.nvcc",
    "env.pip",
    "env.shadowing",
    "env.torch",
    "env.cuda-match",
    "env.packages",
    "env.dependencies",
    "env.files",
    "ops.deepspeed",
    "source.megatron",
    "build.megatron",
    "build.helpers",
    "source.apex",
    "ops.apex",
    "ops.flash-attn",
    "source.llm-jp-sft",
)


def write(root: Path, *, channel: str, installer: str, sha256: str) -> Whole:
    """``root/profile`` and ``root/wheels``, and the repositories in ``root/git``."""
    profile, wheelhouse, git = root / "profile", root / "wheels", root / "git"
    profile.mkdir(parents=True)
    conda_channel.write_profile(profile, wheelhouse, channel=channel, installer=installer, sha256=sha256)
    with (profile / "requirements.lock").open("a", encoding="utf-8") as lock:
        lock.write(wheels.pin(_pybind11(wheelhouse)))
    deepspeed = _tree("deepspeed", "0.12.4", ops=OPS, files={"deepspeed/__init__.py": "# stand-in\n"})
    (profile / "deepspeed.lock").write_text(_sdist(wheelhouse, "deepspeed", "0.12.4", deepspeed), encoding="utf-8")
    flash = _tree("flash-attn", "2.5.0", modules={"flash_attn_2_cuda": ""}, files={"flash_attn/__init__.py": ""})
    (profile / "flash-attn.lock").write_text(_sdist(wheelhouse, "flash-attn", "2.5.0", flash), encoding="utf-8")
    extensions = {"apex_C": "--cpp_ext", "amp_C": "--cuda_ext"}
    apex = commit(
        git / "apex", _tree("apex", "0.1", modules=extensions, files={"apex/__init__.py": "# stand-in\n"}), "23.08"
    )
    of_megatron = {
        **_tree("megatron-core", "0.2.0", files={"megatron/__init__.py": "# stand-in\n"}),
        "megatron/data/Makefile": megatron.MAKEFILE,
        "megatron/data/helpers.cpp": megatron.HELPERS,
        ".gitignore": "*.so\n",
    }
    commits = {
        "megatron": ("Megatron-DeepSpeed", commit(git / "Megatron-DeepSpeed", of_megatron, "v1")),
        "apex": ("apex", apex),
        "llm-jp-sft": ("llm-jp-sft", commit(git / "llm-jp-sft", {"train.py": "# stand-in\n"}, "v1")),
    }
    tables = "".join(
        f'\n[sources.{key}]\nurl = "{git / folder}"\nfolder = "{folder}"\n'
        f'tag = "{"23.08" if key == "apex" else "v1"}"\ncommit = "{found}"\n'
        for key, (folder, found) in commits.items()
    )
    text = (profile / "profile.toml").read_text(encoding="utf-8")
    start, end = text.index("requirements = ["), text.index("[engines]")
    listed = "requirements = [\n" + "".join(f'    "{item}",\n' for item in REQUIREMENTS) + "]\n\n"
    text = text[:start] + listed + text[end:]
    text = text.replace("newest_gcc = 11", "newest_gcc = 99")  # the compiler that is here
    text += (
        '\n[gpu]\nname = "NVIDIA L4"\ncapability = "8.9"\nmemory_gb = 24\n'
        f'\n[deepspeed]\nversion = "0.12.4"\nops = {sorted(OPS)}\nleft_out = ["evoformer_attn", "sparse_attn"]\n'
        f'\n[apex]\nmodules = {sorted(extensions)}\n\n[flash_attention]\nversion = "2.5.0"\n{tables}'
    ).replace("'", '"')
    (profile / "profile.toml").write_text(text, encoding="utf-8")
    return Whole(profile, git / "apex", git / "Megatron-DeepSpeed")


def setup(tiny: Tiny, *args: str) -> Outcome:
    """Set the workspace up with the profile beside it."""
    return tiny("setup", "--profile", str(tiny.root / "profile"), "--yes", "--json", *args)


def actions(outcome: Outcome) -> list[tuple[str, str]]:
    """What was done: requirement and the first word of each action, in order."""
    return [(item["requirement"], item["action"].split()[0]) for item in outcome.json["data"]["actions"]]


def finish(root: Path) -> None:
    """Write the profile and its channel, and make a workspace of it; ``said.json`` tells how that went."""
    made = root / "made"
    conda_channel.write_channel(made / "channel")
    script = conda_channel.write_installer(made)
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    write(root, channel=(made / "channel").as_uri(), installer=script.as_uri(), sha256=digest)
    began = time.monotonic()
    outcome = setup(Tiny(root))
    assert outcome.code == 0, outcome.out + outcome.err
    said = {"actions": actions(outcome), "seconds": time.monotonic() - began, "err": outcome.err}
    (root / "said.json").write_text(json.dumps(said), encoding="utf-8")
