"""Runs inside the environment's own Python (3.8 or newer), alone: says what is installed there as JSON.

The answer is one line that begins with the first argument (:mod:`bootstrap.facts.answer`): ``sitecustomize`` and
``.pth`` files may print what they like.

It imports nothing but the standard library, and never torch: everything is read from metadata and files. The path
module and ``importlib.metadata`` are left out because each would cost more time than all that is done here.
"""

# No path module here: see above.
# ruff: noqa: PTH110, PTH112, PTH118, PTH119, PTH120, PTH121, PTH123, PTH208

import json
import os
import re
import site
import sys
import sysconfig

#: Our file in an environment that shows the packages of another Python, which ``bootstrap.requirements._adopt`` writes:
#: its first line is a comment in JSON. It sorts last: what the environment's own ``.pth`` files name comes before.
ADOPT = "zzz-ucllm-adopt.pth"
_REQUIRES = re.compile(rb"^Requires-Dist:[ \t]*([^\r\n]+)", re.MULTILINE)
_VERSION = re.compile(rb"^Version: *(\S+)", re.MULTILINE)
_NAME = re.compile(rb"^Name: *(\S+)", re.MULTILINE)
#: What can be imported: a package's folder, a module, a compiled module.
_MODULE = re.compile(r"([A-Za-z_]\w*)(\.py|\.so|\.[^/]*\.so|)$")


def is_whole(folder: str) -> bool:
    """Whether a ``.dist-info`` is complete: METADATA with a version, and the RECORD that pip writes last.

    pip first copies the wheel's own RECORD, then makes the package's commands, then writes one that names INSTALLER.
    """
    versioned = _VERSION.search(_read(os.path.join(folder, "METADATA")))
    return bool(versioned) and b"/INSTALLER," in _read(os.path.join(folder, "RECORD"))


def _read(path: str) -> bytes:
    """A file's bytes; none if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return b""


def _names(folder: str) -> "list[str]":
    """What lies in a folder; nothing if it cannot be read, or is none."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


class Dist:
    """One distribution as its metadata has it; ``tops`` are the first parts of the files its RECORD lists."""

    def __init__(self, folder: str, entry: str) -> None:
        path = os.path.join(folder, entry)
        self.egg = not entry.endswith(".dist-info")
        if not self.egg:
            raw, record = _read(os.path.join(path, "METADATA")), _read(os.path.join(path, "RECORD"))
        else:
            raw, record = _read(os.path.join(path, "PKG-INFO")) or _read(path), b""
        head = re.split(rb"\r?\n\r?\n", raw, maxsplit=1)[0]
        name, version = _NAME.search(head), _VERSION.search(head)
        # A distribution whose METADATA is gone still has its name in the folder's.
        name_text = name.group(1).decode("utf-8", "replace") if name else entry.split("-", 1)[0]
        self.name = re.sub(r"[-_.]+", "-", name_text).lower()
        self.version = version.group(1).decode("utf-8", "replace") if version else ""
        # An egg has no RECORD: nothing says that it is not whole.
        self.whole = bool(version) and (self.egg or b"/INSTALLER," in record)
        lines = [line.strip().decode("utf-8", "replace") for line in _REQUIRES.findall(head)]
        self.requires = [line for line in lines if not re.search(r";.*\bextra\s*==", line)]
        self.tops = {
            line.split(b"/", 1)[0].split(b",", 1)[0].decode("utf-8", "replace") for line in record.split(b"\n")
        }
        self.listed = set(_read(os.path.join(path, "top_level.txt")).decode("utf-8", "replace").split())


def _dists(folder: str) -> "list[Dist]":
    """The distributions in one folder of ``sys.path``."""
    found = [
        Dist(folder, entry)
        for entry in _names(folder)
        # `~name` is what pip renames a distribution to while it replaces it.
        if entry.endswith((".dist-info", ".egg-info")) and not entry.startswith("~")
    ]
    if folder.endswith(".egg") and os.path.isdir(os.path.join(folder, "EGG-INFO")):
        found.append(Dist(folder, "EGG-INFO"))
    return [dist for dist in found if dist.name]


def _shadows(folder: str, dists: "list[Dist]") -> "list[str]":
    """Modules in ``folder`` that no distribution owns although one of that import name is installed there."""
    owned = set().union(*(dist.tops for dist in dists))
    theirs = {match.group(1) for match in map(_MODULE.match, owned) if match}
    # What has no whole RECORD may own anything under its name.
    loose = set().union(*(dist.listed | {dist.name.replace("-", "_")} for dist in dists if dist.egg or not dist.whole))
    found = []
    for entry in _names(folder):
        match = None if entry in owned else _MODULE.match(entry)
        if match and match.group(1) in theirs - loose:
            path = os.path.join(folder, entry)
            if match.group(2) or os.path.exists(os.path.join(path, "__init__.py")):
                found.append(path)
    return sorted(found)


def _extensions(folders: "list[str]") -> "dict[str, list[str]]":
    """Compiled modules at the top of site-packages, by the name they are imported under."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for entry in sorted(_names(folder)):
            if entry.endswith(".so"):
                found.setdefault(entry.split(".")[0], []).append(os.path.join(folder, entry))
    return found


def _torch() -> "dict[str, object] | None":
    """The installed torch by its files."""
    folder = next((path for path in (os.path.join(item, "torch") for item in sys.path) if os.path.isdir(path)), None)
    text = _read(os.path.join(folder, "version.py")).decode("utf-8", "replace") if folder else ""
    version = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    if folder is None or version is None:
        return None
    cuda = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    config = _read(os.path.join(folder, "share", "cmake", "Torch", "TorchConfig.cmake"))
    flag = re.search(rb"_GLIBCXX_USE_CXX11_ABI=(\d)", config)
    abi = flag.group(1) == b"1" if flag else None
    numbers = [int(part) for part in re.findall(r"\d+", version.group(1))[:2]]
    if flag is None and config and numbers >= [2, 8]:  # from there on it is built with no other, and says nothing
        abi = True
    return {
        "version": version.group(1),
        "cuda": cuda.group(1) if cuda else "",
        "cxx11_abi": abi,
        "folder": folder,
    }


def _deepspeed() -> "dict[str, object] | None":
    """What DeepSpeed's build recorded about itself."""
    for item in sys.path:
        folder = os.path.join(item, "deepspeed")
        text = _read(os.path.join(folder, "git_version_info_installed.py"))
        if not text:
            continue
        import ast

        values = {}
        try:
            for node in ast.parse(text).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    values[node.targets[0].id] = ast.literal_eval(node.value)
        except (SyntaxError, ValueError):
            pass  # what was read until there counts
        libraries = []
        for part in ("ops", os.path.join("inference", "v2")):  # where op_builder puts them
            for where, folders, files in os.walk(os.path.join(folder, part)):
                folders[:] = [name for name in folders if name not in ("csrc", "__pycache__")]
                libraries += [os.path.join(where, name) for name in files if name.endswith(".so")]
        built = values.get("torch_info") or {}
        return {
            "version": str(values.get("version", "")),
            "installed": values.get("installed_ops") or {},
            "compatible": values.get("compatible_ops") or {},
            "torch": str(built.get("version", "")),
            "cuda": str(built.get("cuda_version", "")),
            "libraries": sorted(libraries),
        }
    return None


def _pip_python(folder: str) -> str:
    """The interpreter that ``bin/pip`` starts; empty if there is none. A long path is in the second line, for a shell.

    One in ``folder`` itself, however written, is given as lying there.
    """
    lines = _read(os.path.join(folder, "pip"))[:4096].decode("utf-8", "replace").splitlines()
    if not lines or not lines[0].startswith("#!"):
        return ""
    found = lines[0][2:].strip()
    if found.split("/")[-1] in ("sh", "env sh") and len(lines) > 1:
        match = re.match(r"'''exec' \"?([^\"]+?)\"? \"\$0\"", lines[1])
        found = match.group(1) if match else found
    try:
        if os.path.samefile(os.path.dirname(found), folder):
            return os.path.join(folder, os.path.basename(found))
    except OSError:
        pass  # the folder it names is gone: so it is not this one
    return found


def _base(folders: "list[str]") -> str:
    """The Python whose packages this environment adopts, by our own ``.pth`` file; empty if it adopts none."""
    for folder in folders:
        lines = _read(os.path.join(folder, ADOPT)).decode("utf-8", "replace").splitlines()
        try:
            return str(json.loads(lines[0].lstrip("# "))["python"])
        except (IndexError, ValueError, KeyError, TypeError):
            continue
    return ""


def _user_site() -> str:
    """The user's site-packages if this Python would use it when started without ``-I``."""
    shut = sys.prefix != sys.base_prefix and sys.base_prefix not in site.PREFIXES  # a venv by itself
    if shut or os.environ.get("PYTHONNOUSERSITE"):
        return ""
    folder = site.getusersitepackages()
    return folder if os.path.isdir(folder) else ""


def _foreign(folders: "list[str]", owned: "set[str]") -> "tuple[list[str], list[str]]":
    """What ``.pth`` files and the like add from outside, and which of it comes before site-packages.

    What a distribution's own ``.pth`` names is an editable install: somebody asked pip for it.
    """
    own = [os.path.realpath(item) for item in (*site.PREFIXES, sys.exec_prefix)]
    standard = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    # The standard library's archive, which need not exist, and its compiled part lie beside and below it.
    standard |= {os.path.join(item, "lib-dynload") for item in standard}
    standard |= {os.path.realpath(path) for path in sys.path if re.search(r"python\d+\.zip$", path)}
    asked = set()
    for folder in folders:
        for entry in _names(folder):
            if entry.endswith(".pth") and entry in owned:
                text = _read(os.path.join(folder, entry)).decode("utf-8", "replace")
                asked |= {os.path.realpath(os.path.join(folder, line.strip())) for line in text.splitlines() if line}
    found, first, before = [], [], True
    for path in sys.path:
        real = os.path.realpath(path)
        if path in folders:
            before = False
        elif not (
            real in standard or real in asked or any((real + "/").startswith(item.rstrip("/") + "/") for item in own)
        ):
            found.append(path)
            first += [path] if before else []
    return found, first


def _sources(folders: "list[str]", foreign: "list[str]") -> "dict[str, str]":
    """The file in site-packages that puts each foreign folder on the path, if one names it."""
    found: dict[str, str] = {}
    for folder in folders if foreign else ():
        for entry in sorted(_names(folder)):
            if entry.endswith(".pth") or entry in ("sitecustomize.py", "usercustomize.py"):
                text = _read(os.path.join(folder, entry)).decode("utf-8", "replace")
                lines = {os.path.realpath(os.path.join(folder, line.strip())) for line in text.splitlines() if line}
                for path in foreign:
                    if os.path.realpath(path) in lines or f"'{path}'" in text or f'"{path}"' in text:
                        found.setdefault(path, os.path.join(folder, entry))
    return found


def main() -> None:
    """Say the facts as one JSON object."""
    folders = list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
    by_folder = {folder: _dists(folder) for folder in dict.fromkeys([*sys.path, *folders])}
    dists: dict[str, Dist] = {}
    for folder in sys.path:
        for dist in by_folder[folder]:
            dists.setdefault(dist.name, dist)  # the first on sys.path is the one that is imported
    owned = set().union(*(dist.tops for folder in folders for dist in by_folder[folder]))
    foreign, first = _foreign(folders, owned)
    pip = any(os.path.exists(os.path.join(folder, "pip", "__main__.py")) for folder in sys.path)
    conda = os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
    base = _base(folders)
    outside = [dist for folder in sys.path if folder not in folders for dist in by_folder[folder]]
    include, user = sysconfig.get_path("include"), _user_site()
    facts = {
        "kind": "venv" if sys.prefix != sys.base_prefix else "conda" if conda else "plain",
        "executable": sys.executable,
        "version": ".".join(str(part) for part in sys.version_info[:3]),
        "prefix": sys.prefix,
        # pip works if its distribution is whole and the package lies on the path.
        "pip": pip and "pip" in dists and dists["pip"].whole,
        "folders": folders,
        "system_site": sys.base_prefix in site.PREFIXES,
        "base": base,
        "adopted": sorted(dist.name for dist in outside if base and dists[dist.name] is dist),
        "pip_python": _pip_python(os.path.dirname(sys.executable)),
        "extension_suffix": sysconfig.get_config_var("EXT_SUFFIX") or "",
        "include": include,
        "has_headers": os.path.exists(os.path.join(include, "Python.h")),
        "dists": {dist.name: [dist.version, dist.whole, dist.requires] for dist in dists.values()},
        "torch": _torch(),
        "deepspeed": _deepspeed(),
        "extensions": _extensions(folders),
        "user_site": user,
        "user_dists": {dist.name: dist.version for dist in _dists(user)} if user else {},
        "foreign_paths": foreign,
        "foreign_first": first,
        "foreign_sources": _sources(folders, foreign),
        "shadows": [path for folder in folders for path in _shadows(folder, by_folder[folder])],
    }
    # Not to sys.stdout, which a start-up file may have replaced, and on a line of its own whatever stands there.
    with os.fdopen(1, "w", encoding="utf-8") as answer:
        answer.write("\n" + sys.argv[1] + json.dumps(facts) + "\n")
    # What a start-up file left to be done at exit must not change how this ended.
    os._exit(0)


if __name__ == "__main__":
    main()
