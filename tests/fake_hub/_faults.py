"""Faults that a test orders in advance: refuse, hang up, stall or falsify the next requests that match."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["fail", "cut", "stall", "corrupt"]
When = Literal["request", "reply", "body"]


@dataclass
class Fault:
    """One order. It fires `remaining` times on requests whose `METHOD /path` the pattern is found in."""

    kind: Kind
    remaining: int
    pattern: re.Pattern[str]
    when: When = "request"
    status: int = 503
    seconds: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = ""


class FaultPlan:
    """The orders still open. The first that matches a request is the one that fires: one fault per request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Queue an order."""
        with self._lock:
            self._faults.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request, used up by one, or None."""
        with self._lock:
            for fault in self._faults:
                if fault.remaining > 0 and fault.pattern.search(f"{method} {path}"):
                    fault.remaining -= 1
                    return fault
        return None

    def clear(self) -> None:
        """Forget every order."""
        with self._lock:
            self._faults.clear()

    @property
    def pending(self) -> int:
        """How many faults have been ordered and have not fired; a test checks that it is 0 in the end."""
        with self._lock:
            return sum(fault.remaining for fault in self._faults)


def corrupted(data: bytes) -> bytes:
    """The same number of bytes, one of them wrong: what a size check does not notice."""
    if not data:
        return data
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
