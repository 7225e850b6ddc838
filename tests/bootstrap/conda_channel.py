"""A local conda channel of a real Python and stand-ins, a stand-in Miniconda installer, and a profile of them.

Python is packed from the one that runs the tests: the standard library, nothing of site-packages. pytorch, CUDA and
Miniconda cannot be had here: what stands in for them says so, in its metadata and in its output.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bootstrap.conda import SUBDIRS
from tests.bootstrap import wheels

SUBDIR = SUBDIRS[platform.machine()]
MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
PYTHON_BUILD = "h0_packed"
#: What the profile pins, name to ``version=build``.
PACKAGES = {
    "python": f"{platform.python_version()}={PYTHON_BUILD}",
    "cuda-toolkit": "11.8.0=0",
    "pytorch": "2.2.0=standin_0",
    "pytorch-cuda": "11.8=standin_0",
    "torchvision": "0.17.0",
    "torchaudio": "2.2.0",
}
#: Parts of the standard library that no test needs; they cost seconds.
_LEFT_OUT = ("test", "tests", "idlelib", "turtledemo", "tkinter", "lib2to3", "pydoc_data", "__pycache__")
#: A file of a package: its content (text of a link if it is one) and mode.
Files = Mapping[str, tuple[bytes, int]]


def pack(
    channel: Path,
    name: str,
    version: str,
    build: str,
    files: Files,
    *,
    depends: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
    placeholder: str = "",
    summary: str = "",
) -> Path:
    """A package as ``.tar.bz2``. In its text files ``placeholder`` becomes the environment's path."""
    index = {
        "name": name,
        "version": version,
        "build": build,
        "build_number": 0,
        "depends": list(depends),
        "subdir": SUBDIR,
        "license": summary or "PSF-2.0",
        "timestamp": 1700000000000,
    }
    paths: list[dict[str, object]] = []
    target = channel / SUBDIR / f"{name}-{version}-{build}.tar.bz2"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:bz2", compresslevel=1) as tar:
        for path, (body, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(body), mode
            tar.addfile(entry, io.BytesIO(body))
            told: dict[str, object] = {
                "_path": path,
                "path_type": "hardlink",
                "sha256": hashlib.sha256(body).hexdigest(),
                "size_in_bytes": len(body),
            }
            if placeholder and placeholder.encode() in body and _is_text(body):
                told.update(file_mode="text", prefix_placeholder=placeholder)
            paths.append(told)
        for path, to in (links or {}).items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, to
            tar.addfile(entry)
            nothing = hashlib.sha256(b"").hexdigest()
            paths.append({"_path": path, "path_type": "softlink", "sha256": nothing, "size_in_bytes": 0})
        about = {"summary": summary}
        for file, data in (("index", index), ("paths", {"paths": paths, "paths_version": 1}), ("about", about)):
            body = json.dumps(data).encode()
            entry = tarfile.TarInfo(f"info/{file}.json")
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return target


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in body


def _stand_in(channel: Path, name: str, files: Mapping[str, str], *depends: str, mode: int = 0o644) -> Path:
    version, _equals, build = PACKAGES[name].partition("=")
    text = f"stand-in for {name} in ucllm's tests: it does nothing"
    told = {f"share/stand-in/{name}": text, **files}
    content = {path: (body.encode(), 0o755 if path.startswith("bin/") else mode) for path, body in told.items()}
    return pack(channel, name, version, build or "standin_0", content, depends=depends, summary=text)


def write_channel(channel: Path) -> None:
    """Pack the Python of the tests and the stand-ins, and index them."""
    pack_python(channel)
    site = f"lib/python{MINOR}/site-packages"
    exact = f"python {MINOR}.*"
    _stand_in(
        channel,
        "pytorch",
        {
            f"{site}/torch/__init__.py": "from torch.version import __version__\n",
            f"{site}/torch/version.py": "__version__ = '2.2.0'\ncuda = '11.8'\n",
            f"{site}/torch-2.2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.2.0\n",
            f"{site}/torch-2.2.0.dist-info/INSTALLER": "conda\n",
            f"{site}/torch-2.2.0.dist-info/RECORD": "torch/__init__.py,,\ntorch-2.2.0.dist-info/RECORD,,\n",
        },
        exact,
        "pytorch-cuda 11.8.*",
    )
    nvcc = "#!/bin/sh\n# stand-in\necho 'Cuda compilation tools, release 11.8, V11.8.89'\n"
    _stand_in(channel, "cuda-toolkit", {"bin/nvcc": nvcc})
    _stand_in(channel, "pytorch-cuda", {}, "__cuda >=11.8", "__glibc >=2.17")
    for name in ("torchvision", "torchaudio"):
        _stand_in(channel, name, {f"{site}/{name}.py": "import torch\n"}, "pytorch 2.2.0", exact)
    index(channel)


def index(channel: Path) -> None:
    """Write the channel's repodata."""
    code = "import asyncio, os, sys, rattler.index as i; asyncio.run(i.index_fs(sys.argv[1])); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(channel)], check=True, capture_output=True)
    (channel / "noarch").mkdir(exist_ok=True)
    if not (channel / "noarch" / "repodata.json").exists():
        (channel / "noarch" / "repodata.json").write_text('{"info":{"subdir":"noarch"},"packages":{}}')


def pack_python(channel: Path) -> Path:
    """The Python that runs the tests, relocatable: text files hold a placeholder, libpython is found from ``bin``."""
    prefix = Path(sys.base_prefix)
    files: dict[str, tuple[bytes, int]] = {}
    links: dict[str, str] = {}
    for path in _of_python(prefix):
        name = str(path.relative_to(prefix))
        if path.is_symlink():
            links[name] = str(path.readlink())
        elif path.is_file():
            files[name] = (_relocatable(path, prefix), path.stat().st_mode & 0o777)
    version, _equals, build = PACKAGES["python"].partition("=")
    return pack(channel, "python", version, build, files, links=links, placeholder=str(prefix))


def _of_python(prefix: Path) -> Iterable[Path]:
    here = [*prefix.glob("bin/python*"), *prefix.glob("lib/libpython*.so*")]
    for folder in (prefix / "include" / f"python{MINOR}", prefix / "lib" / f"python{MINOR}"):
        for root, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if name not in (*_LEFT_OUT, "site-packages"))
            here += [Path(root) / name for name in sorted(names) if not name.endswith(".a")]
    return here


def _relocatable(path: Path, prefix: Path) -> bytes:
    body = path.read_bytes()
    if not body.startswith(b"\x7fELF"):
        return body
    if shutil.which("strip"):  # debugging symbols are most of it, and cost seconds in every test
        with tempfile.NamedTemporaryFile() as stripped:
            argv = ["strip", "--strip-unneeded", "-o", stripped.name, str(path)]
            subprocess.run(argv, check=True, capture_output=True)
            body = Path(stripped.name).read_bytes()
    there, here = f"{prefix}/lib".encode() + b"\0", b"$ORIGIN/../lib\0"
    return body.replace(there, here.ljust(len(there), b"\0")) if path.parent.name == "bin" else body


_CONDA_SH = r"""
# stand-in for Miniconda's conda.sh: what `conda activate PREFIX` and `conda deactivate` do with hooks
_standin_hooks() {
    for _standin_hook in "$1/etc/conda/$2".d/*.sh; do
        if [ -f "${_standin_hook}" ]; then . "${_standin_hook}"; fi
    done
    unset _standin_hook
}
_standin_enter() { CONDA_PREFIX=$1; PATH="$1/bin:${PATH}"; export CONDA_PREFIX PATH; _standin_hooks "$1" activate; }
_standin_leave() { _standin_hooks "${CONDA_PREFIX}" deactivate; PATH=${PATH#"${CONDA_PREFIX}/bin:"}; }
conda() {
    case "${1-}" in
    activate)
        CONDA_SHLVL=$(( ${CONDA_SHLVL:-0} + 1 ))
        if [ -n "${CONDA_PREFIX-}" ]; then _standin_leave; fi
        eval "CONDA_PREFIX_${CONDA_SHLVL}=\${CONDA_PREFIX-}"
        _standin_enter "$2" ;;
    deactivate)
        _standin_leave
        eval "_standin_before=\${CONDA_PREFIX_${CONDA_SHLVL}-}"
        CONDA_SHLVL=$(( CONDA_SHLVL - 1 ))
        unset CONDA_PREFIX
        if [ -n "${_standin_before}" ]; then _standin_enter "${_standin_before}"; fi
        unset _standin_before ;;
    *) "$STANDIN_ROOT/bin/conda" "$@" ;;
    esac
}
"""
_INSTALLER = r"""#!/bin/bash
# stand-in for the Miniconda installer in ucllm's tests. Same options: -b (no questions), -u (update), -p PREFIX.
set -eu
update=0
while getopts "bup:" option; do
    case "$option" in b) ;; u) update=1 ;; p) prefix=$OPTARG ;; *) exit 2 ;; esac
done
if [ "$update" = 0 ] && [ -e "$prefix" ]; then echo "ERROR: File or directory already exists: '$prefix'"; exit 1; fi
mkdir -p "$prefix/bin" "$prefix/conda-meta" "$prefix/etc/profile.d"
echo '{"name": "conda", "version": "23.10.0", "build": "standin_0", "depends": [], "license": "stand-in"}' \
    > "$prefix/conda-meta/conda-23.10.0-standin_0.json"
printf '#!/bin/sh\n# stand-in\necho "conda 23.10.0 (stand-in)"\n' > "$prefix/bin/conda"
chmod +x "$prefix/bin/conda"
cat > "$prefix/etc/profile.d/conda.sh" <<'EOF'
@CONDA_SH@EOF
echo "stand-in installation finished."
"""


def write_installer(folder: Path) -> Path:
    """The stand-in for the Miniconda installer."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "standin_miniconda.sh"
    path.write_text(_INSTALLER.replace("@CONDA_SH@", _CONDA_SH), encoding="utf-8")
    return path


_PROFILE = """\
profile_version = 1
description = "A conda environment of a real Python and stand-ins"
recipe = "botchan-tiny"
requirements = [
    "env.miniconda", "env.conda-activate", "env.python", "env.conda-packages", "env.hooks", "env.nvcc", "env.pip",
    "env.torch", "env.packages", "env.dependencies", "env.conda-files",
    "env.files",
]

[engines]
pretrain = "torch"
finetune = "trl"

[python]
versions = ["{minor}"]
kind = "conda"

[packages]
locks = ["requirements.lock"]

[cuda]
version = "11.8"
driver = "520.61.05"
newest_gcc = 11
architectures = ["80", "89"]
in_env = true

[torch_build]
version = "2.2.0"
cuda = "11.8"

[conda]
version = "23.10.0"
installer = "{installer}"
sha256 = "{sha256}"
channels = ["{channel}"]

[conda.packages]
{packages}

[conda.channel_of]
cuda-toolkit = "{channel}"
"""


def write_profile(folder: Path, wheelhouse: Path, *, channel: str, installer: str, sha256: str) -> None:
    """A profile folder (kind conda) with two tiny wheels, which are put into ``wheelhouse``."""
    alpha = wheels.build(wheelhouse, "alpha", "1.0", command="alpha-cli")
    beta = wheels.build(wheelhouse, "beta", "2.0")
    text = _PROFILE.format(
        minor=MINOR,
        installer=installer,
        sha256=sha256,
        channel=channel,
        packages="\n".join(f'{name} = "{pin}"' for name, pin in PACKAGES.items()),
    )
    (folder / "profile.toml").write_text(text, encoding="utf-8")
    (folder / "requirements.lock").write_text(wheels.pin(alpha) + wheels.pin(beta), encoding="utf-8")


def write_lock(folder: Path, channel: Path, *, base: str = "", without_hash: str = "") -> None:
    """``conda-lock.yml`` as conda-lock 4 writes it, of all packages in ``channel``, which is reached as ``base``."""
    base = base or channel.as_uri()
    repodata = json.loads((channel / SUBDIR / "repodata.json").read_text(encoding="utf-8"))
    blocks = []
    for file, record in sorted(repodata["packages"].items()):
        depends = [spec.split(maxsplit=1) for spec in record["depends"]]
        wanted = "".join(f"\n    {spec[0]}: '{' '.join(spec[1:])}'" for spec in depends) or " {}"
        sha256 = "" if record["name"] == without_hash else f"\n    sha256: {record['sha256']}"
        blocks.append(
            f"- name: {record['name']}\n  version: '{record['version']}'\n  manager: conda\n  platform: {SUBDIR}\n"
            f"  dependencies:{wanted}\n  url: {base}/{SUBDIR}/{file}\n  hash:\n    md5: {record['md5']}{sha256}\n"
            "  category: main\n  optional: false\n"
        )
    head = f"""\
        version: 1
        metadata:
          content_hash:
            {SUBDIR}: {"0" * 64}
          channels:
          - url: {base}
            used_env_vars: []
          platforms:
          - {SUBDIR}
          sources:
          - environment.yml
        package:
        """
    (folder / "conda-lock.yml").write_text(textwrap.dedent(head) + "".join(blocks), encoding="utf-8")
