"""Instruction data: three shapes that mean the same, errors with file and line, and the rule for a plain text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UcllmError
from pipeline.instructions import Conversation, corpus_text, from_corpus, read_instructions


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


def turns(*contents: str, system: str = "") -> Conversation:
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def problems(path: Path) -> list[str]:
    with pytest.raises(UcllmError) as caught:
        read_instructions(path)
    return [problem.message for problem in caught.value.problems]


def test_the_three_shapes_are_the_same_conversation(tmp_path: Path) -> None:
    expected = turns("名前は？", "猫 です。\n二行目")
    data = write(
        tmp_path / "a.jsonl",
        {"text": "### Human: 名前は？\n### Assistant: 猫 です。\n二行目"},
        {"text": "### Human: 名前は？### Assistant: 猫 です。\n二行目 "},  # OpenAssistant-guanaco has no newline
        {"messages": expected},
        {"prompt": "名前は？ ", "completion": " 猫 です。\n二行目", "id": 7},
    )
    assert read_instructions(data).conversations == [expected] * 4


def test_several_turns_and_a_system_message(tmp_path: Path) -> None:
    expected = turns("a", "b", "c", "d", system="s")
    text = "s\n\n### Human: a\n### Assistant: b\n### Human: c\n### Assistant: d"
    data = write(tmp_path / "a.jsonl", {"text": text}, {"messages": expected})
    assert read_instructions(data).conversations == [expected, expected]


def test_a_closing_question_is_left_out_and_counted(tmp_path: Path) -> None:
    data = write(
        tmp_path / "a.jsonl",
        {"messages": turns("a", "b", "c")},
        {"text": "### Human: a### Assistant: b### Human:"},
        {"prompt": "a", "completion": "b"},
    )
    read = read_instructions(data)
    assert read.conversations == [turns("a", "b")] * 3
    assert read.unanswered == 2


def test_gzip_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\ufeff".encode() + b'{"prompt": "a", "completion": "b"}\n\n'))
    assert read_instructions(path).conversations == [turns("a", "b")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"prompt": "a", "compl', "not JSON"),
        (b'{"prompt": "\x83\x41", "completion": "b"}', "CP932"),
        (b"[" * 100_000, "not JSON"),
        ({"question": "a", "answer": "b"}, "none of the three shapes; its keys: `question`, `answer`"),
        ({"prompt": "a", "completion": None}, "none of the three shapes"),
        ({"prompt": "a"}, "none of the three shapes"),
        (["a", "b"], "a list"),
        ({"text": "just a text"}, "no `### Human:`"),
        ({"text": "### Human: a"}, "no answer to learn from"),
        ({"messages": []}, "no answer to learn from"),
        ({"messages": turns("a")}, "no answer to learn from"),
        ({"messages": [{"role": "user"}]}, "a role and a content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a role and a content"),
        ({"messages": turns("a", "b")[::-1]}, "Turn 1 is of `assistant` and must be of `user`"),
        ({"messages": [*turns("a", "b"), *turns("c", "d")[1:]]}, "Turn 3 is of `assistant`"),
        ({"messages": [*turns("a", "b"), *turns("a", "b", system="s")]}, "Turn 3 is of `system`"),
        ({"messages": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]}, "Turn 1 is of `human`"),
        ({"prompt": "a", "completion": " \n"}, "The answer of turn 2 is empty"),
        ({"text": "### Human: ### Assistant: b"}, "The question of turn 1 is empty"),
        (b'{"prompt": "a", "completion": "\\ud83c"}', "surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, says: str) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"}, line)
    found = problems(path)
    assert len(found) == 1
    assert found[0].startswith(f"Line 2 of {path} ")
    assert says in found[0]


def test_every_bad_line_is_told_at_once_with_the_shapes(tmp_path: Path) -> None:
    good = {"prompt": "a", "completion": "b"}
    path = write(tmp_path / "a.jsonl", b"{", good, {"prompt": "a", "completion": ""}, {"x": 1})
    with pytest.raises(UcllmError) as caught:
        read_instructions(path)
    found = caught.value.problems
    assert [problem.what.split()[1] for problem in found] == ["1", "3", "4"]
    for shape in ('{"text": "### Human: …', '{"messages": [', '{"prompt": "…", "completion": "…"}'):
        assert all(shape in problem.hint for problem in found)
        assert all("on_bad_line" not in problem.hint for problem in found)


def test_endless_bad_lines_are_cut_short(tmp_path: Path) -> None:
    assert 10 <= len(problems(write(tmp_path / "a.jsonl", *[b"{"] * 500))) <= 21


def test_an_empty_file_and_a_missing_one(tmp_path: Path) -> None:
    assert "holds no conversations" in problems(write(tmp_path / "a.jsonl", b"", b" "))[0]
    assert "Cannot read" in problems(tmp_path / "none.jsonl")[0]


def exchanges(count: int) -> str:
    return "\n".join(f'Then we met.\n"Are you number {n}?"\n"I am,\nand who is it?"' for n in range(count))


def test_exchanges_are_quotations_on_neighbouring_lines() -> None:
    found = from_corpus('He said "no" to me.\n"Lone."\nand\n' + exchanges(60))
    assert len(found) == 60
    assert found[3] == turns("Are you number 3?", "I am, and who is it?")


@pytest.mark.parametrize("marks", ['""', "“”", "「」"])
def test_quotation_marks_of_other_hands(marks: str) -> None:
    text = "\n".join(f"{marks[0]}質問{n}{marks[1]}\n{marks[0]}答え{n}{marks[1]}\n地の文" for n in range(50))
    assert from_corpus(text)[49] == turns("質問49", "答え49")


def test_without_enough_exchanges_neighbouring_sentences_are_taken() -> None:
    sentences = [f"This is sentence number {n}, long\nenough." for n in range(1200)]
    found = from_corpus(exchanges(3) + "\n" + " ".join(sentences) + " Short. " + sentences[0])
    assert 250 < len(found) <= 500
    assert turns("This is sentence number 600, long enough.", "This is sentence number 601, long enough.") in found or (
        turns("This is sentence number 599, long enough.", "This is sentence number 600, long enough.") in found
    )
    assert all(20 <= len(message["content"]) <= 200 for pair in found for message in pair)


def test_japanese_sentences_need_no_blanks() -> None:
    text = "吾輩は猫であるけれども、名前というものはまだ無い。どこで生れたのか、とんと見当がつかないのである。終。"
    assert from_corpus(text) == [turns(*text[:-2].replace("。", "。\n").split("\n")[:2])]


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(UcllmError) as caught:
        from_corpus("no sentence at all")
    assert "finetune.data=FILE.jsonl" in caught.value.problems[0].hint


def test_the_corpus_is_read_as_the_corpus_stage_reads_it(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_bytes("\ufeff“Who?”\r\n“Me.”\r\n".encode())
    records = write(tmp_path / "b.jsonl", {"body": "third"}, b"{", {"body": "fourth"})
    rules = {"json_key": "body", "on_bad_line": "skip"}
    assert corpus_text([plain, records], rules) == "“Who?”\n“Me.”\n\nthird\n\nfourth"
    with pytest.raises(UcllmError, match="Line 2"):
        corpus_text([plain, records], {**rules, "on_bad_line": "error"})


def test_the_recipes_own_text_gives_the_pairs_it_is_tuned_for(shared: Path) -> None:
    documents = (shared / "oracle" / "corpus" / "botchan.jsonl").read_text(encoding="utf-8").splitlines()
    text = "\n".join(json.loads(line)["text"] for line in documents)
    found = from_corpus(text)
    assert found == from_corpus(text)
    assert len(found) == 189
    assert found[3] == turns("Nobody put them in.", "If not, how could they get into the bed?")
