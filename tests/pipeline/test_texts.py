"""Texts as users have them: line ends, encodings, compression, broken lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.errors import UcllmError
from pipeline.stages import Sources
from pipeline.texts import MOST_PROBLEMS, Faults, Texts, chosen, is_jsonl, reading_rules, records

#: What a JSON text or a UTF-8 line can hold: anything but surrogates.
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def codes(error: pytest.ExceptionInfo[UcllmError]) -> list[str]:
    return [problem.code for problem in error.value.problems]


@pytest.mark.parametrize(
    ("name", "jsonl"),
    [("a.jsonl", True), ("a.json.gz", True), ("A.NDJSON", True), ("a.txt", False), ("a.gz", False), ("jsonl", False)],
)
def test_the_name_tells_jsonl_from_text(name: str, jsonl: bool) -> None:
    assert is_jsonl(Path(name)) == jsonl


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_documents_of_a_plain_text(tmp_path: Path, name: str) -> None:
    content = "\ufeffone\r\n\r\n  two \n \t\u3000\nthree\u2028x\rY\nfour\n\nfive".encode()
    texts = Texts([write(tmp_path / name, content)])
    assert list(texts.documents(2)) == ["one\n  two ", "three\u2028x\rY\nfour", "five"]
    assert texts.position == texts.total == (tmp_path / name).stat().st_size
    assert list(Texts(texts.paths).documents(0)) == ["one\n  two \nthree\u2028x\rY\nfour\nfive"]


def test_a_document_never_spans_two_files_and_files_keep_their_order(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "b.txt", b"1\n2\n3"),
        write(tmp_path / "a.jsonl", b'{"text": "4"}\n'),
        write(tmp_path / "c.txt", b"5"),
    ]
    assert list(Texts(files).documents(2)) == ["1\n2", "3", "4", "5"]


def test_lines_stay_as_they_are_in_the_file(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.txt", "\ufeffa\r\n\n b \n".encode()),
        write(tmp_path / "b.jsonl", b'{"text": "c\\n\\nd"}'),
    ]
    assert list(Texts(files).lines()) == ["\ufeffa\r", "", " b ", "c", "", "d"]


@settings(deadline=None, max_examples=50)
@given(documents=st.lists(UNICODE), ascii_only=st.booleans())
def test_any_text_survives_jsonl(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl.gz"
    lines = [json.dumps({"id": 1, "body": text}, ensure_ascii=ascii_only) for text in documents]
    write(path, "\n\n".join(lines).encode())
    assert list(Texts([path], json_key="body").documents(20)) == documents


BAD_LINES = {
    "broken": (b'{"text": "x"', "It is not JSON: Expecting ',' delimiter, column 13."),
    "array": (b'["x"]', 'It is a list, not an object like {"text": "…"}.'),
    "nothing": (b"null", 'It is null, not an object like {"text": "…"}.'),
    "missing": (b'{"body": "x"}', "It has no key `text` (it has: `body`); `--set corpus.json_key=KEY` names another."),
    "number": (b'{"text": 3}', "Its `text` is a number, not a text."),
    "surrogate": (b'{"text": "\\ud800"}', "Its `text` holds half of a surrogate pair."),
    "encoding": ('{"text": "日本"}'.encode("cp932"), "It may be CP932."),
    "nested": (b"[" * 200_000, "It is not JSON: nested too deeply."),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_and_the_reading_goes_on(tmp_path: Path, name: str) -> None:
    line, why = BAD_LINES[name]
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n')
    texts = Texts([path])
    assert list(texts.documents(1)) == ["one", "two"]
    with pytest.raises(UcllmError) as error:
        texts.faults.raise_if_any()
    assert [(p.code, p.what, p.why) for p in error.value.problems] == [
        ("data.bad-line", f"Line 3 of {path} cannot be used.", why)
    ]
    assert "corpus.on_bad_line=skip" in error.value.problems[0].hint

    skipping = Texts([path], skip_bad_lines=True)
    assert list(skipping.documents(1)) == ["one", "two"]
    skipping.faults.raise_if_any()
    assert skipping.faults.bad_lines == 1
    assert f"Line 3 of {path} cannot be used. {why}" in skipping.faults.note()


def test_a_clean_file_has_no_note(tmp_path: Path) -> None:
    texts = Texts([write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n')], skip_bad_lines=True)
    assert list(texts.documents(1)) == ["one"]
    assert texts.faults.note() == ""


def test_the_reading_stops_after_too_many_problems(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"x\n" * 1000)
    with pytest.raises(UcllmError) as error:
        list(Texts([path]).documents(1))
    assert codes(error) == ["data.bad-line"] * MOST_PROBLEMS + ["data.more"]


@pytest.mark.parametrize(
    ("content", "place", "encoding"),
    [
        ("abc\n吾輩は猫である\n".encode("euc_jp"), "line 2, byte 1", "EUC-JP"),
        ("abc\nxx吾輩は猫である\n".encode("cp932"), "line 2, byte 3", "CP932"),
        ("abc\n".encode("utf-16"), "line 1, byte 1", "UTF-16"),
        ("abc\ncafé, ".encode("latin-1"), "line 2, byte 4", "ENCODING"),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_a_text_that_is_not_utf8(tmp_path: Path, content: bytes, place: str, encoding: str, skip: bool) -> None:
    paths = [
        write(tmp_path / "a.txt", content),
        write(tmp_path / "b.txt", b"good"),
        write(tmp_path / "c.txt.gz", content),
    ]
    texts = Texts(paths, skip_bad_lines=skip)
    assert "good" in list(texts.documents(1))
    with pytest.raises(UcllmError) as error:
        texts.faults.raise_if_any()
    assert codes(error) == ["data.not-utf8"] * 2
    assert error.value.problems[0].what == f"{paths[0]} is not UTF-8: {place}."
    assert error.value.problems[0].hint == f"Convert it: `zcat -f {paths[0]} | iconv -f {encoding} -t UTF-8 > NEW_FILE`"


def test_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(UcllmError) as error:
        Texts([tmp_path / "no.txt", tmp_path, tmp_path / "none.jsonl"])
    assert [problem.what for problem in error.value.problems] == [
        f"Cannot read {tmp_path / 'no.txt'}.",
        f"Cannot read {tmp_path / 'none.jsonl'}.",
    ]
    folder = Texts([tmp_path])
    assert list(folder.documents(1)) == []
    assert folder.faults.problems[0].why == "Is a directory"


@pytest.mark.parametrize(
    "content",
    [b"plain", gzip.compress(b"line\n" * 1000)[:-9], gzip.compress(b"x")[:10] + b"\xff" * 20],
    ids=["plain", "truncated", "damaged"],  # compressed bytes hold the time: they are no names for tests
)
def test_a_damaged_gzip_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(content)
    texts = Texts([path])
    list(texts.documents(1))
    assert [problem.code for problem in texts.faults.problems] == ["data.not-gzip"]


def test_records_of_another_shape(tmp_path: Path) -> None:
    def parse(record: Mapping[str, Any]) -> int:
        if record["n"] < 0:
            raise ValueError("It is negative.")
        return int(record["n"])

    faults = Faults(skip=True)
    path = write(tmp_path / "a.jsonl", b'{"n": 1}\n{"n": -1}\n{"n": 2}')
    assert list(records(path, parse, faults)) == [1, 2]
    assert "Line 2" in faults.note()


def test_which_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, dataset = Config(), tmp_path / "dataset.txt"
    assert chosen(config, Sources(tmp_path, dataset=dataset)) == [dataset]
    config.data.input = ["x/b.txt", "a.txt"]
    assert chosen(config, Sources(tmp_path, dataset=dataset)) == [tmp_path / "x/b.txt", tmp_path / "a.txt"]
    assert chosen(config, Sources(tmp_path, dataset=dataset, inputs=("mine.txt",))) == [tmp_path / "mine.txt"]
    with pytest.raises(UcllmError) as error:
        chosen(Config(), Sources(tmp_path))
    assert codes(error) == ["data.missing"]


def test_only_rules_that_matter_decide(tmp_path: Path) -> None:
    assert reading_rules(Config(), [tmp_path / "a.txt"]) == {}
    rules = reading_rules(Config(), [tmp_path / "a.txt", tmp_path / "b.jsonl.gz"])
    assert rules == {"json_key": "text", "on_bad_line": "error"}


@pytest.mark.parametrize(
    ("start", "end", "lines"),
    [
        ("*** START", "End of", ["two", "three"]),
        ("", "End of", ["one", "*** START here", "two", "three"]),
        ("*** START", "", ["two", "three", "End of it", "four"]),
    ],
)
def test_only_the_part_between_the_marks_counts(tmp_path: Path, start: str, end: str, lines: list[str]) -> None:
    path = write(tmp_path / "book.txt", b"one\n*** START here\ntwo\nthree\nEnd of it\nfour\n")
    texts = Texts([path], start_after=start, end_before=end)
    assert list(texts.documents(1)) == lines
    texts.faults.raise_if_any()


@pytest.mark.parametrize(("start", "end"), [("*** BEGIN", ""), ("", "Finis"), ("*** START", "one")])
def test_a_mark_that_is_not_there_is_an_error(tmp_path: Path, start: str, end: str) -> None:
    path = write(tmp_path / "book.txt", b"one\n*** START here\ntwo\n")
    texts = Texts([path], start_after=start, end_before=end)
    list(texts.documents(1))
    with pytest.raises(UcllmError, match="no line that begins with"):
        texts.faults.raise_if_any()
