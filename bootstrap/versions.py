"""Versions as the checks compare them. What must be compared by PEP 440 takes ``packaging`` instead."""

from __future__ import annotations

import re


def minor(version: str) -> str:
    """Major and minor number: ``3.9.18`` → ``3.9``, ``2.2.0+cu118`` → ``2.2``."""
    return ".".join(release(version).split(".")[:2])


def release(version: str) -> str:
    """The version without its local part, which says only how it was built: ``2.2.0+cu118`` → ``2.2.0``."""
    return version.partition("+")[0]


def numbers(version: str) -> tuple[int, ...]:
    """All numbers in a version, to compare by: ``535.129.03`` → ``(535, 129, 3)``."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
