"""Whether a Hugging Face tokenizer folder gives SentencePiece's ids and text."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import spm
from pipeline.hf_tokenizer import BYTE, NORMAL, UNKNOWN, USER_DEFINED, SpModel, read_model


@dataclass(frozen=True)
class Mismatch:
    """One text that a tokenizer reads differently from SentencePiece.

    ``path``: ``fast``, ``slow`` (``use_fast=False``) or ``saved`` (saved by transformers and loaded again). ``what``:
    ``ids`` or ``decode``, of which ``expected`` is SentencePiece's and ``got`` the other's. ``tie``: both readings
    have the same score to within single precision, so that SentencePiece itself chooses by rounding.
    """

    text: str
    path: str
    what: str
    expected: object
    got: object
    tie: bool = False


def parity(model: Path, folder: Path, texts: Iterable[str]) -> list[Mismatch]:
    """Compare the tokenizer in ``folder`` with the SentencePiece ``model`` on ``texts``, by every way of loading it.

    Nothing is added to the ids on either side; decoding keeps special tokens. In transformers 5, and for the class
    that :func:`pipeline.hf_tokenizer.write_hf_tokenizer` names also in 4, ``use_fast=False`` loads the same
    ``tokenizer.json``: no slow class of either generation follows SentencePiece on any text. It is compared anyway,
    since a folder may come from elsewhere.

    :raises UcllmError: ``tokenizer.unusable`` when ``model`` is not a SentencePiece model.
    """
    from transformers import AutoTokenizer

    processor, read = spm.load(model), read_model(model)
    wanted = list(texts)
    ids = [list(processor.encode(text)) for text in wanted]
    plain = [str(processor.decode(one)) for one in ids]
    found: list[Mismatch] = []
    with tempfile.TemporaryDirectory() as saved, warnings.catch_warnings():
        # What transformers deprecates is no finding about the tokenizer.
        warnings.simplefilter("ignore")
        fast = AutoTokenizer.from_pretrained(str(folder))
        fast.save_pretrained(saved)
        ways = {
            "fast": fast,
            "slow": AutoTokenizer.from_pretrained(str(folder), use_fast=False),
            "saved": AutoTokenizer.from_pretrained(saved),
        }
        for path, tokenizer in ways.items():
            for text, expected, decoded in zip(wanted, ids, plain):
                got = list(tokenizer(text, add_special_tokens=False)["input_ids"])
                if got != expected:
                    tie = is_tie(read, expected, got)
                    found.append(Mismatch(text, path, "ids", tuple(expected), tuple(got), tie))
                back = tokenizer.decode(expected)
                if back != decoded:
                    found.append(Mismatch(text, path, "decode", decoded, back))
    return found


def is_tie(model: SpModel, one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two readings spell the same text and have scores that single precision cannot be relied on to order."""
    if _spelling(model, one) != _spelling(model, other):
        return False
    first, second = _score(model, one), _score(model, other)
    # SentencePiece rounds its running sum once a piece, to 24 bits.
    return abs(first - second) <= 2.0**-24 * max(abs(first), abs(second), 1.0) * (len(one) + len(other))


def _spelling(model: SpModel, ids: Sequence[int]) -> bytes:
    pieces = [model.pieces[number] for number in ids]
    return b"".join(bytes.fromhex(p.text[3:5]) if p.kind == BYTE else p.text.encode() for p in pieces)


def _score(model: SpModel, ids: Sequence[int]) -> float:
    lowest = min(p.score for p in model.pieces if p.kind == NORMAL)

    def score(number: int) -> float:
        piece: Any = model.pieces[number]
        if piece.kind == NORMAL:
            return float(piece.score)
        if piece.kind == USER_DEFINED:
            return 0.1 * (len(piece.text.encode()) - 1)
        # An unknown character costs once, however many bytes it falls back to: count its first byte.
        starts = piece.kind == UNKNOWN or (piece.kind == BYTE and not 0x80 <= int(piece.text[3:5], 16) < 0xC0)
        return lowest - 10.0 if starts else 0.0

    return sum(score(number) for number in ids)
