"""Shared libraries read as ELF: the dynamic sections only, so that one of 200 MB costs no more than a small one."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from bootstrap.facts import BinariesFacts, Binary, EnvFacts
from bootstrap.facts.collect import Request

#: flash-attn 2's only compiled module.
FLASH_ATTENTION = "flash_attn_2_cuda"
#: The compiled modules of apex and flash-attn that are read: those that use torch's C++ interface with strings.
MODULES = ("apex_C", "amp_C", "fused_layer_norm_cuda", FLASH_ATTENTION)
LIBSTDCXX = "libstdc++.so.6"
#: A name in one of torch's namespaces as the Itanium C++ ABI writes it: a table, type information or guard of it, or
#: itself, its qualifiers, then the outermost name's length and the name. ``std::string::at`` has ``2at`` further in.
_TORCH = re.compile(r"_Z(?:T[VTIS]|GV)?N[rVK]*[RO]?(?:3c10|2at|5torch)")
#: What a mangled name is made of, as far as needed to step over identifiers: literals (``Lb1E``), references to
#: earlier parts (``S1_``), lengths of identifiers, all else.
_PART = re.compile(r"L[a-z]n?\d+E|[ST][0-9A-Z]*_|(?P<length>\d+)|(?P<string>Ss)|.", re.DOTALL)


def collect(request: Request) -> BinariesFacts:
    """Read what extensions there are, and the C++ library that they will meet."""
    env: EnvFacts = request.section("env")
    paths = [path for name in MODULES for path in env.extensions.get(name, ())]
    paths += env.deepspeed.libraries if env.deepspeed else ()
    library = find_libstdcxx(env)
    paths += [library] if library else []
    return BinariesFacts({path: read(path) for path in dict.fromkeys(paths)}, library)


def find_libstdcxx(env: EnvFacts) -> str:
    """The libstdc++ that the environment's Python would load; empty if there is none.

    conda's Python looks into its own ``lib`` before all else (its RPATH), also when a venv was made from it.
    """
    folders = []
    if env.kind == "conda":
        folders.append(Path(env.path) / "lib")
    if env.python:
        base = Path(os.path.realpath(env.python)).parent.parent
        if (base / "conda-meta").is_dir():
            folders.append(base / "lib")
    # An empty entry is the current folder, which a stage does not share with this process.
    folders += [Path(item) for item in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if item]
    multiarch = f"{platform.machine()}-linux-gnu"
    folders += [Path(item) for item in (f"/usr/lib/{multiarch}", f"/lib/{multiarch}", "/usr/lib64", "/usr/lib")]
    for folder in folders:
        try:
            if (folder / LIBSTDCXX).is_file():
                return str(folder / LIBSTDCXX)
        except OSError:
            continue
    return ""


def read(path: str) -> Binary:
    """One library. What cannot be read, or is no ELF file, has an ``error``."""
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    try:
        with Path(path).open("rb") as stream:
            elf = ELFFile(stream)
            dynamic, symbols = elf.get_section_by_name(".dynamic"), elf.get_section_by_name(".dynsym")
            if dynamic is None or symbols is None:
                return Binary(error=f"{path}: no .dynamic or no .dynsym")
            needed = tuple(tag.needed for tag in dynamic.iter_tags("DT_NEEDED"))
            names = [item.name for item in symbols.iter_symbols() if item["st_shndx"] == "SHN_UNDEF"]
            return Binary(needed, abi_of(names), _provides(elf.get_section_by_name(".gnu.version_d")))
    except OSError as error:
        return Binary(error=str(error))
    # Whatever pyelftools meets in a file that was cut off or is none of its kind.
    except (ELFError, ConstructError, AssertionError, ValueError, KeyError, AttributeError, TypeError) as error:
        return Binary(error=f"{path}: {type(error).__name__}: {error}")


def abi_of(names: list[str]) -> str:
    """The C++ library ABI for which these wanted symbols of torch were compiled; empty if they hold no string."""
    torch = [name for name in names if _TORCH.match(name)]
    if any("__cxx11" in name for name in torch):
        return "cxx11"
    return "old" if any(_old_string(name) for name in torch) else ""


def _old_string(name: str) -> bool:
    """Whether a mangled name holds ``Ss``, the old ABI's ``std::string``, outside identifiers."""
    at = 0
    while part := _PART.match(name, at):
        if part["string"]:
            return True
        at = part.end() + int(part["length"] or 0)
    return False


def _provides(versions: Any) -> str:
    """The newest ``GLIBCXX_`` version that a library defines, without that prefix."""
    if versions is None:
        return ""
    names = [aux.name for _definition, auxiliaries in versions.iter_versions() for aux in auxiliaries]
    found = [match[1] for name in names if (match := re.fullmatch(r"GLIBCXX_(\d+(?:\.\d+)*)", name))]
    return max(found, key=lambda text: [int(part) for part in text.split(".")], default="")
