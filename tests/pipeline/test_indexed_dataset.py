"""The format against its own description, written here a second time with ``struct`` alone."""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UcllmError

np = pytest.importorskip("numpy", reason="the reader and writer run in the environment")

from pipeline import indexed_dataset as ids  # noqa: E402  after the check for NumPy
from pipeline.corpus import entropy_nats  # noqa: E402

PARAMETERS = [(2, "<u2", 8, 65_499), (4, "<i4", 4, 100_000)]


def write(prefix: Path, documents: list[list[int]], dtype: str = "<u2") -> Path:
    with ids.Writer(prefix, dtype) as writer:
        for tokens in documents:
            writer.add_document(tokens)
        writer.finish()
    return prefix


@pytest.mark.parametrize("kind", PARAMETERS)
@settings(deadline=None, max_examples=50)
@given(data=st.data(), block=st.integers(1, 5))
def test_bytes_and_reading(
    tmp_path_factory: pytest.TempPathFactory, kind: tuple[int, str, int, int], data: st.DataObject, block: int
) -> None:
    itemsize, dtype, code, largest = kind
    documents = data.draw(st.lists(st.lists(st.integers(0, largest), min_size=1), min_size=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "BLOCK", block)  # so that small corpora span several blocks
        prefix = write(tmp_path_factory.mktemp("data") / "a.b", documents, dtype)
        dataset = ids.IndexedDataset(prefix)
        counts = dataset.token_counts(3)

    n = len(documents)
    sizes = [len(tokens) for tokens in documents]
    pointers = [itemsize * size for size in itertools.accumulate([0, *sizes[:-1]])]
    flat = list(itertools.chain.from_iterable(documents))
    letter = "H" if itemsize == 2 else "i"
    index = (prefix.parent / "a.b.idx").read_bytes()
    assert len(index) == 34 + 12 * n + 8 * (n + 1)
    assert index == b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, n, n + 1) + struct.pack(
        f"<{n}i{n}q{n + 1}q", *sizes, *pointers, *range(n + 1)
    )
    assert (prefix.parent / "a.b.bin").read_bytes() == struct.pack(f"<{len(flat)}{letter}", *flat)

    assert [dataset[i].tolist() for i in range(len(dataset))] == documents
    assert dataset.tokens.tolist() == flat
    assert dataset.dtype.itemsize == itemsize
    assert {i: c for i, c in enumerate(counts.tolist()) if c} == {i: flat.count(i) for i in set(flat)}
    assert len(counts) >= 3


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2048, "<u2"), (65_499, "<u2"), (65_500, "<i4"), (65_536, "<i4")])
def test_type_of_the_vocabulary(vocabulary: int, dtype: str) -> None:
    assert ids.best_dtype(vocabulary) == dtype


def test_an_unfinished_corpus_has_no_index(tmp_path: Path) -> None:
    with ids.Writer(tmp_path / "a", "<u2") as writer:
        writer.add_document([1, 2])
    assert ids.check(tmp_path / "a") == [f"{tmp_path / 'a.idx'} is missing."]


def test_an_empty_dataset_is_sound(tmp_path: Path) -> None:
    dataset = ids.IndexedDataset(write(tmp_path / "a", []))
    assert len(dataset) == len(dataset.tokens) == 0


DOCUMENTS = [[1, 2, 3], [4], [5, 6]]
SIZES, POINTERS, MARKS = 34, 34 + 4 * 3, 34 + 12 * 3


def patched(offset: int, value: bytes) -> object:
    return lambda index: index[:offset] + value + index[offset + len(value) :]


DAMAGE = {
    "magic": (patched(0, b"X"), "does not begin with MMIDIDX"),
    "empty": (lambda _index: b"", "does not begin with MMIDIDX"),
    "header": (lambda index: index[:20], "cut off inside its header"),
    "version": (patched(9, b"\x02"), "has version 2, not 1"),
    "type": (patched(17, b"\x07"), "type code 7"),
    "short": (lambda index: index[:-1], "has 101 bytes, but its header (3 sequences) asks for 102"),
    "long": (lambda index: index + b"\0" * 8, "has 110 bytes"),
    "count": (patched(18, b"\xff" * 8), "asks for"),
    "negative": (patched(SIZES, struct.pack("<i", -3)), "negative size"),
    "size": (patched(SIZES, struct.pack("<i", 2)), "wrong place for sequence 1"),
    "last size": (patched(SIZES + 8, struct.pack("<i", 1)), "has 12 bytes, but"),
    "pointer": (patched(POINTERS + 16, struct.pack("<q", 9)), "wrong place for sequence 2"),
    "first mark": (patched(MARKS, struct.pack("<q", 1)), "does not divide its 3 sequences"),
    "last mark": (patched(MARKS + 24, struct.pack("<q", 2)), "does not divide its 3 sequences"),
    "order": (patched(MARKS + 8, struct.pack("<2q", 2, 1)), "does not divide its 3 sequences"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("block", [1, 1000])
def test_damage_is_named(tmp_path: Path, name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "BLOCK", block)
    change, text = DAMAGE[name]
    prefix = write(tmp_path / "a", DOCUMENTS)
    assert ids.check(prefix) == []
    index = tmp_path / "a.idx"
    index.write_bytes(change(index.read_bytes()))  # type: ignore[operator]  # a table of functions
    problems = ids.check(prefix)
    assert len(problems) == 1
    assert text in problems[0]
    with pytest.raises(UcllmError, match="ucllm train corpus --force|" + prefix.name) as error:
        ids.IndexedDataset(prefix)
    assert [problem.code for problem in error.value.problems] == ["corpus.damaged"]


@pytest.mark.parametrize("change", [-1, -2, 1, 2, 4])
def test_a_bin_of_another_length(tmp_path: Path, change: int) -> None:
    prefix = write(tmp_path / "a", DOCUMENTS)
    data = tmp_path / "a.bin"
    data.write_bytes((data.read_bytes() + b"\0" * 8)[: 12 + change])
    problems = ids.check(prefix)
    assert len(problems) == 1
    assert f"has {12 + change} bytes" in problems[0]
    assert "EOD" not in problems[0]


def test_the_index_of_upstream_is_recognized(shared: Path) -> None:
    problems = ids.check(shared / "oracle" / "megatron_data" / "botchan_text_document")
    assert len(problems) == 1
    assert "did not count <EOD>" in problems[0]


def test_entropy() -> None:
    assert entropy_nats(np.array([5, 0, 5, 5, 5])) == pytest.approx(math.log(4))
    assert entropy_nats(np.array([0, 7])) == 0
