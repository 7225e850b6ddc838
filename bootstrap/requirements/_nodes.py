"""What the checks of a job's nodes share: names in a sentence, and which of them differ from the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bootstrap.facts import Facts, NodeFacts
from bootstrap.findings import Finding, unknown
from pipeline.i18n import _

#: What a sentence names before it only counts.
MOST = 8


def listed(names: Sequence[str]) -> str:
    """The names, or the first few of them and how many more there are."""
    if len(names) <= MOST:
        return ", ".join(names)
    return _("{names} and {count} more").format(names=", ".join(names[:MOST]), count=len(names) - MOST)


def by_value(values: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Each value with the nodes that have it: what most have comes first, and of several the first node's."""
    order = [value for value, _count in Counter(values.values()).most_common()]
    return [(value, [host for host, mine in values.items() if mine == value]) for value in order]


def told(name: str, values: Mapping[str, str]) -> str:
    """One line: ``torch: 2.2.0 on node-a, node-c; 2.1.0 on node-b``."""
    parts = [
        _("{value} on {hosts}").format(value=value or _("none"), hosts=listed(hosts))
        for value, hosts in by_value(values)
    ]
    return f"{name}: " + "; ".join(parts)


def odd(values: Mapping[str, str]) -> list[str]:
    """The nodes whose value is not what most have."""
    return [host for _value, hosts in by_value(values)[1:] for host in hosts]


def unread(facts: Facts, *sections: str) -> Finding | None:
    """What to say where a section of a node's facts could not be collected there."""
    lost = [
        f"{node.host}: {name}: {reason}"
        for node in facts.nodes.nodes
        for name, reason in node.errors.items()
        if name in sections
    ]
    return unknown(_("The facts for it could not be collected on every node."), lost) if lost else None


def hosts(nodes: Sequence[NodeFacts]) -> str:
    """Their names in a sentence."""
    return listed([node.host for node in nodes])
