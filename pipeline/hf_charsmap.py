"""SentencePiece's character rules as a ``tokenizers`` normaliser that gives the same text, character for character.

SentencePiece takes the longest rule at each position, over a whole text. ``tokenizers`` has a component that reads the
same rules (``Precompiled``), but it works grapheme by grapheme and there takes the *shortest* rule, so that it drops
marks and knows no rule of six bytes or more. Two facts make an exact form possible with stock components:

* alone in its grapheme, a character gets its own rule, right;
* every rule over several characters is "apply the single rules, then compose (NFC)", at least in the tables that
  SentencePiece ships. That is checked rule by rule at conversion; a table for which it is false is refused.

So a separator is put before every character that could join or compose with the one before it, in two kinds: inside
a rule, and between units. ``Precompiled`` runs; the inner separators go; NFC runs; the others go.
"""

from __future__ import annotations

import base64
import functools
import json
import struct
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.errors import UcllmError
from pipeline.i18n import _

Step = dict[str, Any]

# U+FFF0..U+FFF8 are unassigned for good and `Control` for grapheme breaking (Unicode 15, GraphemeBreakProperty.txt),
# so nothing ever joins them; the same holds of the unassigned tag characters.
_SEPARATORS = [chr(c) for c in (*range(0xFFF0, 0xFFF9), *range(0xE0080, 0xE00A0))]
# Letters before the separator say what it is. A digit neither composes nor joins what follows it.
_LITERAL, _INNER, _BETWEEN = "0", "1", "2"

# Unicode 16 has 21 compositions that tokenizers 0.23 does not know. Each costs one more pass over every text.
_MOST_LATE = 64

# Bits of a double-array unit: third_party/darts_clone/darts.h in the SentencePiece source.
_HAS_LEAF = 1 << 8
_LABEL = 0x800000FF
_VALUE = 0x7FFFFFFF


@functools.lru_cache(maxsize=2)
def decode_rules(charsmap: bytes) -> Mapping[str, str]:
    """The rules of a ``precompiled_charsmap``: text to its replacement.

    ``charsmap`` is a little-endian ``uint32`` (bytes of trie), the trie (a Darts double array of ``uint32`` units),
    then NUL-terminated replacements that the trie's values index by byte.
    """
    import numpy as np

    size = struct.unpack_from("<I", charsmap)[0]
    units = np.frombuffer(charsmap, dtype="<u4", count=size // 4, offset=4)
    offsets = (units >> 10) << ((units & 0x200) >> 6)
    labels = units & _LABEL
    text = charsmap[4 + size :]
    letters: Any = np.arange(1, 256, dtype=np.uint32)
    rules: dict[str, str] = {}
    positions, keys = offsets[:1], [b""]
    while keys:
        found: list[tuple[Any, list[bytes]]] = []
        for start in range(0, len(keys), 4096):
            nodes = positions[start : start + 4096, None] ^ letters[None, :]
            inside = nodes < len(units)
            parent, letter = np.nonzero(inside & (labels[np.where(inside, nodes, 0)] == letters[None, :]))
            children = nodes[parent, letter]
            names = [keys[start + p] + bytes((b + 1,)) for p, b in zip(parent.tolist(), letter.tolist())]
            nexts = children ^ offsets[children]
            for index in np.nonzero(units[children] & _HAS_LEAF)[0].tolist():
                value = int(units[nexts[index]]) & _VALUE
                rules[names[index].decode()] = text[value : text.index(b"\0", value)].decode()
            found.append((nexts, names))
        positions = np.concatenate([nexts for nexts, _names in found])
        keys = [name for _nexts, names in found for name in names]
    return rules


def without_rules(charsmap: bytes, texts: Iterable[str]) -> bytes:
    """``charsmap`` with the rules for ``texts`` switched off; longer rules that begin with them stay."""
    size = struct.unpack_from("<I", charsmap)[0]
    units = list(struct.unpack_from(f"<{size // 4}I", charsmap, 4))
    for text in texts:
        position, node = 0, 0
        for letter in text.encode():
            position ^= (units[node] >> 10) << ((units[node] & 0x200) >> 6) ^ letter
            node = position
            if node >= len(units) or units[node] & _LABEL != letter:
                break
        else:
            units[node] &= ~_HAS_LEAF
    return charsmap[:4] + struct.pack(f"<{len(units)}I", *units) + charsmap[4 + size :]


def _ranges(characters: Iterable[str]) -> str:
    """The inside of a regular expression's character class."""
    out: list[str] = []
    points = sorted({ord(c) for c in characters})
    start = previous = points[0] if points else 0
    for point in [*points[1:], -1]:
        if point == previous + 1:
            previous = point
            continue
        out.append(f"\\x{{{start:X}}}" + (f"-\\x{{{previous:X}}}" if previous > start else ""))
        start = previous = point
    return "".join(out) if points else ""


def _longest_first(keys: Iterable[str]) -> str:
    """A regular expression for ``keys`` that prefers the longest: their trie with equal branches merged."""
    trie: dict[str, Any] = {}
    for key in keys:
        node = trie
        for character in key:
            node = node.setdefault(character, {})
        node[""] = {}

    @functools.cache
    def joined(branches: tuple[tuple[str, str], ...], ends: bool) -> str:
        merged: dict[str, list[str]] = {}
        for character, rest in branches:
            merged.setdefault(rest, []).append(character)
        ways = sorted((f"[{_ranges(firsts)}]{rest}" for rest, firsts in merged.items()), key=len)
        return "(?:" + "|".join(ways) + ")" + ("?" if ends else "") if ways else ""

    def expression(node: dict[str, Any]) -> str:
        branches = tuple(sorted((c, expression(rest)) for c, rest in node.items() if c))
        return joined(branches, "" in node)

    return expression(trie)


def escape(text: str) -> str:
    """A regular expression for exactly ``text``, in the syntax of ``tokenizers`` (Oniguruma)."""
    return "".join(f"\\x{{{ord(c):X}}}" for c in text)


def _replace(pattern: str, content: str, *, regex: bool = False) -> Step:
    return {"type": "Replace", "pattern": {"Regex" if regex else "String": pattern}, "content": content}


def run_steps(steps: Sequence[Step], text: str) -> str:
    """``text`` after ``steps``, by the installed ``tokenizers``."""
    return str(build_normalizer(steps).normalize_str(text))


def build_normalizer(steps: Sequence[Step]) -> Any:
    """The installed library's normaliser of these ``steps``; its ``normalize_str`` takes and gives a text."""
    from tokenizers import Tokenizer

    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]], "byte_fallback": False}
    sequence = {"type": "Sequence", "normalizers": list(steps)}
    return Tokenizer.from_str(json.dumps({"version": "1.0", "normalizer": sequence, "model": model})).normalizer


def _precompiled(charsmap: bytes) -> Step:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}


def _probe_charsmap() -> bytes:
    """A table with one rule, ``a`` to ``b``: ``Precompiled`` then shows which characters join an ``a``."""
    units = [0] * 0x200
    units[0] = 0x100 << 10
    units[0x161] = 1 << 10 | _HAS_LEAF | 0x61
    units[0x160] = 1 << 31
    return struct.pack("<I512I", 4 * len(units), *units) + b"b\0"


@functools.lru_cache(maxsize=1)
def _joining() -> frozenset[str]:
    """Characters that may join, compose with or be reordered against the one before them.

    Asked of the installed ``tokenizers``, whose Unicode tables may be newer than Python's, and widened by every
    character that Python calls a mark.
    """
    scripts = ((0, 0x3400), (0xA000, 0xAC00), (0xD7A4, 0xD800), (0xF900, 0x20000))
    blocks = (*scripts, (0x2F800, 0x2FA20), (0xE0000, 0xE1000))
    points = [chr(c) for start, end in blocks for c in range(start, end) if chr(c) != "0"]
    joined = run_steps([_precompiled(_probe_charsmap())], "0".join("a" + c for c in points)).split("0")
    out = {c for c, shown in zip(points, joined) if shown == "b"}
    plain = [c for c in points if c not in out]
    # 0345 has the highest combining class there is: any other mark would move before it.
    moved = run_steps([{"type": "NFC"}], "0".join("\u0345" + c for c in plain)).split("0")
    out |= {c for c, shown in zip(plain, moved) if not shown.startswith("\u0345")}
    for parts in run_steps([{"type": "NFD"}], "0".join(points)).split("0"):
        out |= set(parts[1:])
    return frozenset(out | {c for c in points if unicodedata.category(c).startswith("M")})


def _refuse(why: str) -> UcllmError:
    return UcllmError(
        "tokenizer.normalizer",
        _("This tokenizer's normalisation cannot be written as an exact Hugging Face tokenizer."),
        why,
        _("Train it with normalization_rule_name nmt_nfkc, nfkc or identity."),
    )


def charsmap_steps(charsmap: bytes, symbols: Sequence[str]) -> list[Step]:
    """Normaliser steps (as in ``tokenizer.json``) that do to any text what SentencePiece does with ``charsmap``.

    ``symbols`` are the user-defined symbols: they pass unchanged wherever SentencePiece's left-to-right reading meets
    one. The dummy prefix and the escaping of spaces are not part of this. Every rule is run through the result and
    compared before it is returned.

    :raises UcllmError: ``tokenizer.normalizer`` when the table or the symbols cannot be followed exactly.
    """
    if not charsmap:
        return []
    rules = decode_rules(charsmap)
    several = {key: value for key, value in rules.items() if len(key) > 1}
    alone = {key: value for key, value in rules.items() if len(key) == 1}
    for symbol in symbols:
        if len(symbol) == 1:
            alone.pop(symbol, None)
    bad = [s for s in symbols if any(c in alone for c in s)]
    if several:
        bad += [s for s in symbols if run_steps([{"type": "NFC"}], s) != s]
    if bad:
        why = _("The user-defined symbol {symbol} holds characters that it changes.").format(symbol=repr(bad[0]))
        raise _refuse(why)

    joining = _joining()
    tied = set(joining)
    tied |= {c for key in several for c in key[1:]}
    tied |= {key for key, value in alone.items() if value and value[0] in joining}
    used = {c for key in rules for c in key}
    if (tied | used) & {_LITERAL, _INNER, _BETWEEN}:
        raise _refuse(_("It has rules for digits."))
    spoken_for = used | {c for symbol in symbols for c in symbol}
    mark = next((c for c in _SEPARATORS if c not in spoken_for and c not in tied), None)
    if mark is None:
        raise _refuse(_("It has rules for every unassigned character."))

    tie = f"[{_ranges(tied)}]"
    loose = f"[^{_ranges(tied)}]"
    long = _escaped_longest(s for s in symbols if len(s) > 1)
    # \G is where the last separator went, hence the start of a unit; so is any character not tied to its left.
    starts = ["\\G", f"(?={loose}{tie})", *([f"(?=(?:{long}){tie})"] if long else [])]
    units = [way for way in (_escaped_longest(symbols), _longest_first(several), loose, tie) if way]
    boundary = f"(?:{'|'.join(starts)})(?>{'|'.join(units)})\\K(?={tie})"
    # "\r\n" is one grapheme as well, but a newline is too common to be tied.
    # Not at the start: tokenizers loses count of the text when something is put before its first character.
    inner = f"(?<!{_BETWEEN}{escape(mark)})(?!\\A)(?={tie})|(?<=\\x{{D}})(?=\\x{{A}})"
    steps = [_replace(mark, _LITERAL + mark)]
    if several:
        steps.append(_replace(boundary, _BETWEEN + mark, regex=True))
    steps += [
        _replace(inner, _INNER + mark, regex=True),
        _precompiled(without_rules(charsmap, [s for s in symbols if len(s) == 1])),
        _replace(_INNER + mark, ""),
    ]
    if several:
        steps += [*_late_compositions(alone, several), {"type": "NFC"}, _replace(_BETWEEN + mark, "")]
    steps.append(_replace(_LITERAL + mark, mark))
    _check(steps, {**alone, **several}, symbols, composes=bool(several))
    return steps


def _late_compositions(alone: dict[str, str], several: dict[str, str]) -> list[Step]:
    """Replacements for the rules that the NFC of ``tokenizers`` does not know: its Unicode tables may be older."""
    keys = list(several)
    single = ["".join(alone.get(c, c) for c in key) for key in keys]
    late: dict[str, list[str]] = {}
    for start in range(0, len(keys), 2000):
        chunk = single[start : start + 2000]
        composed = run_steps([{"type": "NFC"}], _LITERAL.join(chunk)).split(_LITERAL)
        for key, text, got in zip(keys[start : start + 2000], chunk, composed):
            if got != several[key]:
                late.setdefault(several[key], []).append(text)
    if len(late) > _MOST_LATE:
        example = ascii(next(iter(late.values()))[0])
        raise _refuse(_("It has many rules that are no composition, such as the one for {text}.").format(text=example))
    # Longest first: one may begin with another.
    ordered = sorted(late.items(), key=lambda entry: -max(map(len, entry[1])))
    return [_replace(_escaped_longest(set(texts)), value, regex=True) for value, texts in ordered]


def _escaped_longest(symbols: Iterable[str]) -> str:
    return "|".join(escape(s) for s in sorted(symbols, key=lambda s: -len(s.encode())))


def _check(steps: Sequence[Step], rules: dict[str, str], symbols: Sequence[str], *, composes: bool) -> None:
    """Refuse the table unless every rule, every symbol and every character without a rule comes out right."""
    normalizer = build_normalizer(steps)
    begun = set(symbols)
    wanted = {key: value for key, value in rules.items() if key[0] not in begun}
    wanted.update((s, s) for s in symbols)
    if composes:
        blocks = ((0, 0xD800), (0xE000, 0x20000), (0x2F800, 0x2FA20))
        wanted.update((chr(c), chr(c)) for start, end in blocks for c in range(start, end) if chr(c) not in wanted)
    keys = [key for key in wanted if key != _LITERAL]
    for start in range(0, len(keys), 2000):
        chunk = keys[start : start + 2000]
        got = normalizer.normalize_str(_LITERAL.join(chunk))
        if got == _LITERAL.join(wanted[key] for key in chunk):
            continue
        for key in chunk:
            if normalizer.normalize_str(key) != wanted[key]:
                raise _refuse(_("Its rule for {text} is one that Hugging Face cannot follow.").format(text=ascii(key)))
        raise _refuse(_("Its rules do not come out right side by side."))
