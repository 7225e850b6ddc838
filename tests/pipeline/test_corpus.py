"""Step 2, first half, in a real process: Megatron's bytes, a right index, refusals that help."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline import corpus, runs
from pipeline.recipe import resolve
from pipeline.stages import Sources
from pipeline.train import StageFailed
from tests.pipeline.conftest import Quiet, RunStage
from tests.pipeline.test_tokenizer import botchan, made_up_text

EOD = 6


@pytest.fixture
def oracle_model(shared: Path) -> Path:
    return shared / "oracle" / "tokenizer" / "botchan.model"


@pytest.fixture
def model(run_stage: RunStage, tmp_path: Path) -> Path:
    """A small tokenizer trained here, for tests that must run without ``../shared``."""
    source = tmp_path / "for-tokenizer.txt"
    source.write_text(made_up_text(), encoding="utf-8")
    run_stage("tokenizer", ["tokenizer.vocab_size=320"], inputs=(str(source),), output=tmp_path / "small")
    return tmp_path / "small.model"


def read(prefix: Path) -> list[list[int]]:
    """The documents of a uint16 corpus, read with ``struct`` alone."""
    index, data = Path(f"{prefix}_text_document.idx").read_bytes(), Path(f"{prefix}_text_document.bin").read_bytes()
    magic, version, code, n, m = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version, code, m) == (b"MMIDIDX\0\0", 1, 8, n + 1)
    sizes = struct.unpack_from(f"<{n}i", index, 34)
    pointers = struct.unpack_from(f"<{n}q", index, 34 + 4 * n)
    assert struct.unpack_from(f"<{m}q", index, 34 + 12 * n) == tuple(range(n + 1))
    assert len(index) == 34 + 12 * n + 8 * m
    assert sum(sizes) * 2 == len(data)
    return [list(struct.unpack_from(f"<{size}H", data, at)) for size, at in zip(sizes, pointers)]


def jsonl(path: Path, *values: Any) -> str:
    content = "".join(json.dumps(value) + "\n" for value in values).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def test_the_bytes_of_megatron_and_a_right_index(
    run_stage: RunStage, shared: Path, oracle_model: Path, tmp_path: Path
) -> None:
    source = shared / "oracle" / "corpus" / "botchan.jsonl"
    result = run_stage("corpus", inputs=(str(source),), tokenizer=oracle_model, output=tmp_path / "mine")
    theirs = shared / "oracle" / "megatron_data" / "botchan_text_document.bin"
    # Needs sentencepiece <= 0.2.1: of two readings of equal score ("ww w", "w ww") later ones take the other.
    assert (tmp_path / "mine_text_document.bin").read_bytes() == theirs.read_bytes()
    documents = read(tmp_path / "mine")
    flat = [token for document in documents for token in document]
    assert all(document.index(EOD) == len(document) - 1 for document in documents)
    text_bytes = sum(len(json.loads(line)["text"].encode()) for line in source.read_text(encoding="utf-8").splitlines())
    entropy = -sum(c / len(flat) * math.log(c / len(flat)) for c in Counter(flat).values())
    assert result.metrics["unigram_entropy_nats"] == pytest.approx(entropy, abs=1e-6)
    assert {name: value for name, value in result.metrics.items() if name != "unigram_entropy_nats"} == {
        "documents": 215,
        "empty_documents": 0,
        "tokens": theirs.stat().st_size // 2,
        "bytes": text_bytes,
        "bad_lines": 0,
        "vocab_size": 2000,
        "padded_vocab_size": 2048,
    }


def test_text_and_jsonl_of_the_published_corpus_agree(
    run_stage: RunStage, shared: Path, oracle_model: Path, tmp_path: Path
) -> None:
    run_stage("corpus", dataset=botchan(), tokenizer=oracle_model)
    documents = read(tmp_path / "output" / "custom" / "corpus" / "corpus")
    source = shared / "oracle" / "corpus" / "botchan.jsonl"
    run_stage("corpus", inputs=(str(source),), tokenizer=oracle_model, output=tmp_path / "json")
    assert len(documents) == 215
    assert documents == read(tmp_path / "json")


def test_inputs_in_order_compressed_or_not_with_or_without_eod(
    run_stage: RunStage, model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "b.txt"
    text.write_text("the cat\n\nsat\non\n", encoding="utf-8")
    first = jsonl(tmp_path / "z.jsonl.gz", {"body": "the mat"}, {"body": "the hat"})
    settings = ["corpus.json_key=body", "corpus.lines_per_document=2"]
    run_stage("corpus", settings, inputs=(first, str(text)), tokenizer=model, output=tmp_path / "mixed")
    same = jsonl(tmp_path / "same.jsonl", *({"body": t} for t in ("the mat", "the hat", "the cat\nsat", "on")))
    run_stage("corpus", settings, inputs=(same,), tokenizer=model, output=tmp_path / "same")
    assert read(tmp_path / "mixed") == read(tmp_path / "same")
    run_stage(
        "corpus", [*settings, "corpus.append_eod=false"], inputs=(same,), tokenizer=model, output=tmp_path / "bare"
    )
    assert [[*document, EOD] for document in read(tmp_path / "bare")] == read(tmp_path / "same")


def test_documents_of_nothing_are_left_out_like_megatron_does(run_stage: RunStage, model: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"text": ""}, {"text": "the cat"}, {"text": ""})
    observer = Quiet()
    result = run_stage("corpus", inputs=(source,), tokenizer=model, output=tmp_path / "a", observer=observer)
    assert (result.metrics["documents"], result.metrics["empty_documents"]) == (1, 2)
    assert observer.notes == ["2 documents without any text were left out."]
    assert len(read(tmp_path / "a")) == 1


BAD = [{"text": "the cat"}, ["x"], {"body": "x"}, {"text": 3}, {"text": "sat"}]


def test_bad_lines_are_errors_and_nothing_is_published(run_stage: RunStage, model: Path, tmp_path: Path) -> None:
    good = jsonl(tmp_path / "a.jsonl", {"text": "the cat"})
    run_stage("corpus", inputs=(good,), tokenizer=model, output=tmp_path / "a")
    before = (tmp_path / "a_text_document.bin").read_bytes()
    jsonl(tmp_path / "a.jsonl", *BAD)
    with pytest.raises(StageFailed) as failure:
        run_stage("corpus", inputs=(good,), tokenizer=model, output=tmp_path / "a")
    assert [problem.what for problem in failure.value.error.problems] == [
        f"Line {number} of {good} cannot be used." for number in (2, 3, 4)
    ]
    assert (tmp_path / "a_text_document.bin").read_bytes() == before


def test_bad_lines_can_be_left_out(run_stage: RunStage, model: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", *BAD)
    observer = Quiet()
    settings = ["corpus.on_bad_line=skip"]
    result = run_stage("corpus", settings, inputs=(source,), tokenizer=model, output=tmp_path / "a", observer=observer)
    assert (result.metrics["documents"], result.metrics["bad_lines"]) == (2, 3)
    assert observer.notes[0].startswith(
        f"3 bad lines were left out (corpus.on_bad_line=skip). The first: Line 2 of {source}"
    )
    clean = jsonl(tmp_path / "b.jsonl", BAD[0], BAD[-1])
    run_stage("corpus", inputs=(clean,), tokenizer=model, output=tmp_path / "b")
    assert read(tmp_path / "a") == read(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b" \n\r\n"), ("a.jsonl", b""), ("a.jsonl", b'{"text": ""}\n'), ("a.jsonl", b"oops\n")],
)
def test_an_empty_corpus(run_stage: RunStage, model: Path, tmp_path: Path, name: str, content: bytes) -> None:
    settings = ["corpus.on_bad_line=skip"]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageFailed) as failure:
        run_stage("corpus", settings, inputs=(str(tmp_path / name),), tokenizer=model, output=tmp_path / "out")
    assert [problem.code for problem in failure.value.error.problems] == ["data.empty"]
    assert not (tmp_path / "out_text_document.bin").exists()


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(100)])
def test_a_file_that_is_no_tokenizer(run_stage: RunStage, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.model").write_bytes(content)
    source = jsonl(tmp_path / "a.jsonl", {"text": "x"})
    with pytest.raises(StageFailed) as failure:
        run_stage("corpus", inputs=(source,), tokenizer=tmp_path / "bad.model", output=tmp_path / "out")
    assert [problem.code for problem in failure.value.error.problems] == ["tokenizer.unusable"]


def test_a_tokenizer_without_eod(run_stage: RunStage, model: Path, tmp_path: Path) -> None:
    # The piece is renamed inside the file; its length stays, so the file stays a model.
    other = tmp_path / "other.model"
    other.write_bytes(model.read_bytes().replace(b"<EOD>", b"<EOX>"))
    source = jsonl(tmp_path / "a.jsonl", {"text": "the cat"})
    with pytest.raises(StageFailed) as failure:
        run_stage("corpus", inputs=(source,), tokenizer=other, output=tmp_path / "out")
    problem = failure.value.error.problems[0]
    assert problem.code == "tokenizer.no-eod"
    assert "corpus.append_eod=false" in problem.hint
    settings = ["corpus.append_eod=false"]
    assert run_stage("corpus", settings, inputs=(source,), tokenizer=other, output=tmp_path / "out").state == "ran"


def test_verify_sees_another_corpus(run_stage: RunStage, model: Path, tmp_path: Path) -> None:
    """A stage whose files are not the ones of its input must not be published: break the writer, and see."""
    source = jsonl(tmp_path / "a.jsonl", {"text": "the cat"})
    package = tmp_path / ".ucllm" / "code" / "pipeline"
    original = package.resolve()
    package.unlink()
    shutil.copytree(original, package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / "indexed_dataset.py"
    for change, text in (
        ("tokens[::-1]", "does not end with <EOD>"),
        ("tokens[:-2] + tokens[-1:]", "not the first text"),
    ):
        code = (original / "indexed_dataset.py").read_text(encoding="utf-8")
        assert "np.array(tokens," in code
        file.write_text(
            code.replace("np.array(tokens,", f"np.array(({change} + tokens)[:len(tokens)],"), encoding="utf-8"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.train.link_code", lambda _environment: None)
            with pytest.raises(StageFailed) as failure:
                run_stage("corpus", inputs=(source,), tokenizer=model, output=tmp_path / "a")
        problems = failure.value.error.problems
        assert {problem.code for problem in problems} == {"verify.failed"}
        assert any(text in problem.what for problem in problems), change


def test_the_plan_reads_nothing_and_keeps_out_what_does_not_matter(tmp_path: Path) -> None:
    sources = Sources(tmp_path, dataset=tmp_path / "missing.txt")
    plan = corpus.plan("corpus", resolve("", []), sources)
    assert plan.inputs == {
        "input 1": tmp_path / "missing.txt",
        "tokenizer": tmp_path / "tokenizer" / "tokenizer.model",
    }
    assert sorted(path.name for path in plan.outputs.values()) == [
        "corpus_text_document.bin",
        "corpus_text_document.idx",
    ]
    other = resolve("", ["corpus.on_bad_line=skip", "corpus.json_key=x", "pretrain.steps=20"])
    assert corpus.plan("corpus", other, sources) == plan
    lines = resolve("", ["corpus.lines_per_document=3"])
    assert runs.changed_settings(plan.config, corpus.plan("corpus", lines, sources).config) == [
        "corpus.lines_per_document 20 → 3"
    ]
