"""What ``NCCL_SOCKET_IFNAME``, ``GLOO_SOCKET_IFNAME`` and ``NCCL_IB_HCA`` ask for, and what of it is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bootstrap.facts import Facts


@dataclass(frozen=True)
class Pattern:
    """A list of names: ``^`` excludes them, ``=`` takes them exactly and not as beginnings (NCCL's user guide, env).

    Both signs stand before the whole list; a name may carry ``:port``.
    """

    excludes: bool
    exact: bool
    names: tuple[str, ...]

    def hits(self, name: str, here: Sequence[str]) -> list[str]:
        """Those of ``here`` that one name of the list means."""
        return [item for item in here if (item == name if self.exact else item.startswith(name))]

    def chosen(self, here: Sequence[str]) -> list[str]:
        """Those of ``here`` that the whole list leaves."""
        if not self.names:
            return list(here)
        named = {item for name in self.names for item in self.hits(name, here)}
        return [item for item in here if (item in named) != self.excludes]


def parse(value: str) -> Pattern:
    """NCCL's syntax: ``eth,ens`` beginnings, ``=eth0`` exact, ``^docker`` all but, ``^=docker0``."""
    rest = value.removeprefix("^")
    names = rest.removeprefix("=").split(",")
    return Pattern(
        value.startswith("^"), rest.startswith("="), tuple(n.split(":")[0] for n in names if n.split(":")[0])
    )


@dataclass(frozen=True)
class Asked:
    """A variable that is set: what it names, of what is ``present``, and how much of that is ``usable``."""

    name: str
    value: str
    pattern: Pattern
    present: Sequence[str]
    usable: Sequence[str]

    @property
    def absent(self) -> list[str]:
        """Names to be used of which nothing is here; what is excluded need not be."""
        names = () if self.pattern.excludes else self.pattern.names
        return [name for name in names if not self.pattern.hits(name, self.present)]

    @property
    def fails(self) -> bool:
        """Nothing usable is left; gloo needs every name. Nothing to exclude from is no fault."""
        if self.pattern.excludes and not self.usable:
            return False
        return not self.pattern.chosen(self.usable) or (bool(self.absent) and self.name.startswith("GLOO"))


def asked_for(facts: Facts) -> list[Asked]:
    """The variables that are set. ``NCCL_IB_HCA`` asks for nothing where ``NCCL_IB_DISABLE`` is set."""
    variables, network = facts.machine.variables, facts.network
    up = [name for name, state in network.interfaces.items() if state == "up"]
    asked = []
    if value := variables.get("NCCL_SOCKET_IFNAME"):
        asked.append(Asked("NCCL_SOCKET_IFNAME", value, parse(value), list(network.interfaces), up))
    if value := variables.get("GLOO_SOCKET_IFNAME"):
        # torch's gloo takes a list of exact names, without signs.
        exact = Pattern(False, True, tuple(part for part in value.split(",") if part))
        asked.append(Asked("GLOO_SOCKET_IFNAME", value, exact, list(network.interfaces), up))
    value = variables.get("NCCL_IB_HCA")
    if value and variables.get("NCCL_IB_DISABLE", "0") in ("", "0"):
        adapters = network.adapters or ()
        asked.append(Asked("NCCL_IB_HCA", value, parse(value), adapters, adapters))
    return asked
