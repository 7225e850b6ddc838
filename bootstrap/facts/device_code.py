"""Which GPU architectures a built library has code for, read from the file, without CUDA's tools.

nvcc puts a library's device code into the ELF section ``.nv_fatbin``, one container after the other. The layout is not
documented; this is what files of nvcc 11 to 13 have, little-endian, and ``tests/bootstrap/test_deep.py`` compiles some:

- container: magic ``BA55ED50`` (4 bytes), version (2), size of this header (2), size of what follows it (8);
- entry in it: kind (2; 1 is PTX, 2 is machine code), version (2), size of this header (4), size of what follows it (8),
  at byte 28 the architecture (4; 80 is 8.0), at byte 40 flags (8).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
SECTION = ".nv_fatbin"
#: How each kind of entry is named after nvcc's ``code=``.
KINDS = {1: "compute", 2: "sm"}
#: The flags of code for exactly one architecture (``sm_90a``) and of code for one family (``sm_100f``).
SPECIFIC, FAMILY = 0x100000, 0x200000


def read(path: Path) -> tuple[str, ...] | None:
    """The architectures (``sm_80``, ``compute_90``), sorted. ``None``: no device code; empty: it cannot be read."""
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as stream:
            section = ELFFile(stream).get_section_by_name(SECTION)
            if section is None:
                return None
            begin, size = section["sh_offset"], section["sh_size"]
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                if begin + size > len(memory):  # cut off
                    return ()
                found = architectures(memory, begin, begin + size)
    # Whatever pyelftools and struct meet in a file that was cut off or is none of its kind.
    except (OSError, ELFError, ConstructError, AssertionError, struct.error, ValueError, KeyError, TypeError):
        return ()
    return tuple(sorted(found)) or None


def architectures(memory: mmap.mmap | bytes, at: int, end: int) -> set[str]:
    """The entries of all containers between ``at`` and ``end``. Raises ``ValueError`` where they do not fit in.

    Only headers are touched: a library of hundreds of megabytes costs no more than a small one.
    """
    found = set()
    while (at := memory.find(MAGIC, at, end)) >= 0:
        _magic, _version, header, size = struct.unpack_from("<IHHQ", memory, at)
        entry, stop = at + header, at + header + size
        if header < 16 or stop > end:
            raise ValueError(at)
        while entry < stop:
            kind, _version, header, size = struct.unpack_from("<HHIQ", memory, entry)
            if header < 48 or entry + header + size > stop:
                raise ValueError(entry)
            (number,) = struct.unpack_from("<I", memory, entry + 28)
            (flags,) = struct.unpack_from("<Q", memory, entry + 40)
            if kind in KINDS:
                suffix = "a" if flags & SPECIFIC else "f" if flags & FAMILY else ""
                found.add(f"{KINDS[kind]}_{number}{suffix}")
            entry += header + size
        at = stop
    return found
