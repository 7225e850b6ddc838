"""Megatron's indexed dataset: ``PREFIX.bin`` holds tokens, ``PREFIX.idx`` says where each sequence lies in it.

The index, little-endian (``MMapIndexedDataset`` in Megatron's ``megatron/data/indexed_dataset.py``)::

    b"MMIDIDX\\0\\0"  u64 version = 1  u8 type code  u64 n  u64 m
    i32 sizes[n]  i64 pointers[n]  i64 documents[m]

``sizes`` are tokens, ``pointers`` bytes into the ``.bin``, ``documents`` the number of the first sequence of each
document, and ``n`` at the end (m = documents + 1). We write one sequence a document.
"""

from __future__ import annotations

import itertools
import operator
import struct
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
#: Type codes and the types as NumPy names them. Megatron knows more; for tokens it writes only these two.
DTYPES = {4: "<i4", 8: "<u2"}
#: Below this vocabulary Megatron's ``best_fitting_dtype`` takes uint16.
UINT16_LIMIT = 65_500
#: Values looked at in one go, so that memory does not grow with the corpus.
BLOCK = 1 << 20


def bin_path(prefix: Path) -> Path:
    """``PREFIX.bin``. A prefix may hold dots."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """``PREFIX.idx``. A prefix may hold dots."""
    return prefix.with_name(prefix.name + ".idx")


def best_dtype(padded_vocab_size: int) -> str:
    """The NumPy type for tokens of a vocabulary of this size."""
    return DTYPES[8] if padded_vocab_size < UINT16_LIMIT else DTYPES[4]


class Writer:
    """Writes tokens as they come, and the index at the end: four bytes a document are all it keeps.

    A context manager. Without :meth:`finish` there is no index, so an unfinished corpus cannot pass for a whole one.
    """

    def __init__(self, prefix: Path, dtype: str) -> None:
        """Begin ``PREFIX.bin``; ``dtype`` is a value of :data:`DTYPES`."""
        import numpy as np

        self._dtype = np.dtype(dtype)
        self._code = next(code for code, name in DTYPES.items() if np.dtype(name) == self._dtype)
        self._prefix = prefix
        self._sizes = array("i")
        self._stream = bin_path(prefix).open("wb", buffering=1 << 20)

    def __enter__(self) -> Writer:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the ``.bin``, finished or not."""
        self._stream.close()

    def add_document(self, tokens: Sequence[int]) -> None:
        """Append one document, whose tokens must fit the type (:func:`best_dtype`)."""
        import numpy as np

        self._stream.write(np.array(tokens, dtype=self._dtype).tobytes())
        self._sizes.append(len(tokens))

    def finish(self) -> None:
        """Close the ``.bin`` and write the ``.idx``."""
        import numpy as np

        self._stream.close()
        count = len(self._sizes)
        with idx_path(self._prefix).open("wb") as stream:
            stream.write(_HEADER.pack(MAGIC, VERSION, self._code, count, count + 1))
            sizes = np.frombuffer(self._sizes, dtype=np.intc)
            for start in range(0, count, BLOCK):
                stream.write(sizes[start : start + BLOCK].astype("<i4").tobytes())
            position = 0
            for start in range(0, count, BLOCK):
                lengths = sizes[start : start + BLOCK].astype(np.int64) * self._dtype.itemsize
                ends = position + np.cumsum(lengths)
                stream.write((ends - lengths).astype("<i8").tobytes())
                position = int(ends[-1])
            for start in range(0, count + 1, BLOCK):
                stream.write(np.arange(start, min(start + BLOCK, count + 1), dtype="<i8").tobytes())


class IndexedDataset:
    """Both files, memory-mapped. Raises :class:`UcllmError` with what :func:`check` finds.

    ``tokens`` is the whole ``.bin`` [number of tokens]; ``sizes`` [n] in tokens, ``pointers`` [n] in bytes,
    ``documents`` [m]. Sequence ``i`` is ``dataset[i]``. All are read-only NumPy arrays.
    """

    def __init__(self, prefix: Path) -> None:
        """Check both files and map them."""
        import numpy as np

        problems = check(prefix)
        if problems:
            hint = _("Make it again: `ucllm train corpus --force`.")
            raise UcllmError.of([Problem("corpus.damaged", text, hint=hint) for text in problems])
        self.dtype, self.sizes, self.pointers, self.documents = _map_index(idx_path(prefix))
        path = bin_path(prefix)
        # An empty file cannot be mapped.
        empty = path.stat().st_size == 0
        self.tokens: Any = np.empty(0, self.dtype) if empty else np.memmap(path, dtype=self.dtype, mode="r")

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.sizes)

    def __getitem__(self, index: int) -> Any:
        """The tokens of one sequence, a view into the map."""
        start = int(self.pointers[index]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.sizes[index])]

    def token_counts(self, vocab_size: int) -> Any:
        """How often each token occurs, int64 [at least ``vocab_size``; longer if there are larger tokens]."""
        import numpy as np

        counts: Any = np.zeros(vocab_size, dtype=np.int64)
        for start in range(0, len(self.tokens), BLOCK):
            part = np.bincount(self.tokens[start : start + BLOCK], minlength=len(counts))
            part[: len(counts)] += counts
            counts = part
        return counts


def _map_index(path: Path) -> tuple[Any, Any, Any, Any]:
    """``dtype, sizes, pointers, documents`` of an index whose header and length were checked."""
    import numpy as np

    with path.open("rb") as stream:
        _magic, _version, code, count, marks = _HEADER.unpack(stream.read(_HEADER.size))
    content = np.memmap(path, dtype=np.uint8, mode="r")[_HEADER.size :]
    sizes: Any = content[: 4 * count].view("<i4")
    pointers: Any = content[4 * count : 12 * count].view("<i8")
    documents: Any = content[12 * count : 12 * count + 8 * marks].view("<i8")
    return np.dtype(DTYPES[code]), sizes, pointers, documents


def check(prefix: Path) -> list[str]:
    """What is wrong with ``PREFIX.bin`` and ``PREFIX.idx``, one sentence each; empty when they are sound.

    The header and the file lengths come first: when they are wrong, nothing behind them is looked at.
    """
    index, data = idx_path(prefix), bin_path(prefix)
    missing = [_("{path} is missing.").format(path=path) for path in (data, index) if not path.is_file()]
    return missing or _check_header(index) or _check_content(index, data)


def _check_header(index: Path) -> list[str]:
    length = index.stat().st_size
    with index.open("rb") as stream:
        header = stream.read(_HEADER.size)
    if not header.startswith(MAGIC[: len(header)]) or not header:
        return [_("{path} is not an index of Megatron's kind: it does not begin with MMIDIDX.").format(path=index)]
    if len(header) < _HEADER.size:
        return [_("{path} is cut off inside its header.").format(path=index)]
    _magic, version, code, count, marks = _HEADER.unpack(header)
    if version != VERSION:
        return [_("{path} has version {version}, not 1.").format(path=index, version=version)]
    if code not in DTYPES:
        text = _("{path} has tokens of type code {code}; known are 4 (int32) and 8 (uint16).")
        return [text.format(path=index, code=code)]
    expected = _HEADER.size + 12 * count + 8 * marks
    if length != expected:
        return [
            _("{path} has {length} bytes, but its header ({count} sequences) asks for {expected}.").format(
                path=index, length=length, count=count, expected=expected
            )
        ]
    return []


def _check_content(index: Path, data: Path) -> list[str]:
    """Without NumPy, which the tool's own Python has not: block by block, all work on values done in C."""
    problems: list[str] = []
    with index.open("rb") as stream:
        _magic, _version, code, count, marks = _HEADER.unpack(stream.read(_HEADER.size))
        itemsize = int(DTYPES[code][-1])
        total = 0
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            lengths = _values(stream, "i", _HEADER.size + 4 * start, size)
            if min(lengths) < 0:
                problems.append(_("{path} holds a negative size.").format(path=index))
                break
            starts = list(itertools.accumulate(lengths, initial=total))
            total = starts.pop()
            expected = array("q", map(itemsize.__mul__, starts))
            pointers = _values(stream, "q", _HEADER.size + 4 * count + 8 * start, size)
            if pointers != expected:
                wrong = next(number for number in range(size) if pointers[number] != expected[number])
                problems.append(
                    _("{path} points to the wrong place for sequence {number}.").format(
                        path=index, number=start + wrong
                    )
                )
                break
        if not _divides(stream, count, marks):
            text = _("{path} does not divide its {count} sequences into documents.")
            problems.append(text.format(path=index, count=count))
    if not problems and total * itemsize != data.stat().st_size:
        problems.append(_length_problem(index, data, total * itemsize, (marks - 1) * itemsize))
    return problems


def _divides(stream: BinaryIO, count: int, marks: int) -> bool:
    """Whether the document marks begin at 0, end at ``count`` and never fall."""
    last = 0
    for start in range(0, marks, BLOCK):
        block = _values(stream, "q", _HEADER.size + 12 * count + 8 * start, min(BLOCK, marks - start))
        if (start == 0 and block[0] != 0) or last > block[0] or not all(map(operator.le, block, block[1:])):
            return False
        last = block[-1]
    return marks > 0 and last == count


def _values(stream: BinaryIO, code: str, offset: int, count: int) -> array[int]:
    """``count`` little-endian values of the ``array`` type ``code`` (``i``: 4 bytes, ``q``: 8) at ``offset``."""
    values: array[int] = array(code)
    stream.seek(offset)
    values.frombytes(stream.read(count * values.itemsize))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _length_problem(index: Path, data: Path, indexed: int, one_each: int) -> str:
    length = data.stat().st_size
    text = _("{data} has {length} bytes, but {index} speaks of {indexed}.").format(
        data=data, length=length, index=index, indexed=indexed
    )
    if one_each and length - indexed == one_each:
        # Upstream's `--append-eod` writes <EOD> but does not count it.
        text += " " + _(
            "That is one token a document: Megatron-DeepSpeed's preprocess_data.py did not count <EOD>, so documents "
            "would be read shifted. The .bin is right."
        )
    return text
