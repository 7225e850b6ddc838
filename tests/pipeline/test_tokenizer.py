"""Step 1 in a real process: the published vocabulary, the same bytes every time, refusals that help."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from pipeline import runs, tokenizer
from pipeline.recipe import resolve
from pipeline.stages import Sources
from pipeline.train import StageFailed
from tests.conftest import REPOSITORY
from tests.pipeline.conftest import Quiet, RunStage

SMALL = ["tokenizer.vocab_size=320"]
BOTCHAN_SHA256 = "464bd5300c24fce16fcc4555d4231a57632caae4d0090ad6aa92854a3b227ba7"


def made_up_text() -> str:
    """A text of made-up words, the same every time."""
    chance = random.Random(1)
    words = ["".join(chance.choices("aeiouklmnrst", k=chance.randint(2, 7))) for _ in range(80)]
    return "".join(" ".join(chance.choices(words, k=9)) + "\n" for _ in range(120))


@pytest.fixture(scope="session")
def story() -> str:
    return made_up_text()


@pytest.fixture
def story_file(story: str, tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(story, encoding="utf-8")
    return path


def outputs(folder: Path) -> tuple[bytes, str]:
    return (folder / "tokenizer.model").read_bytes(), (folder / "tokenizer.vocab").read_text(encoding="utf-8")


def pieces(vocab: str) -> list[str]:
    """The pieces of a ``.vocab`` file; one of them is a newline."""
    return [line.rpartition("\t")[0] for line in vocab.replace("\n\t", "\\n\t").splitlines()]


def botchan() -> Path:
    """A copy of botchan.txt that some earlier run fetched; skips without one."""
    places = [*REPOSITORY.glob("workspace/**/botchan.txt"), Path("/tmp/lab/tuning/botchan.txt")]  # noqa: S108  read only
    for path in places:
        if path.is_file() and runs.sha256_file(path) == BOTCHAN_SHA256:
            return path
    pytest.skip("no copy of botchan.txt: `make train` fetches it")


def test_metrics_files_and_special_ids(run_stage: RunStage, story_file: Path, tmp_path: Path) -> None:
    observer = Quiet()
    result = run_stage("tokenizer", SMALL, dataset=story_file, observer=observer)
    assert result.state == "ran"
    assert result.metrics == {"vocab_size": 320, "lines": 120, "long_lines": 0, "bad_lines": 0}
    assert observer.notes == ["Learning 320 pieces from 120 lines with 2 threads (their number decides the result)."]
    home = tmp_path / "output" / "custom" / "tokenizer"
    listed = pieces(outputs(home)[1])
    assert listed[:9] == ["<unk>", "<s>", "</s>", "<pad>", "<CLS>", "<SEP>", "<EOD>", "<MASK>", "\\n"]
    assert listed[9:265] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert len(listed) == 320
    assert "sentencepiece" in (runs.read_manifest(home) or {})["versions"]
    assert run_stage("tokenizer", SMALL, dataset=story_file).state == "up-to-date"


def test_the_bytes_do_not_depend_on_folder_or_run(run_stage: RunStage, story: str, tmp_path: Path) -> None:
    made = []
    for folder in ("one", "two/deeper"):
        source = tmp_path / folder / f"{folder[:3]}.txt"
        source.parent.mkdir(parents=True)
        source.write_text(story, encoding="utf-8")
        for _ in range(2):
            prefix = tmp_path / folder / "out.v1"
            run_stage("tokenizer", SMALL, inputs=(str(source),), output=prefix, force=True)
            made.append((prefix.with_name("out.v1.model").read_bytes(), prefix.with_name("out.v1.vocab").read_bytes()))
    assert len(set(made)) == 1


def test_jsonl_gives_the_tokenizer_of_its_text(
    run_stage: RunStage, story: str, story_file: Path, tmp_path: Path
) -> None:
    lines = story.splitlines()
    documents = ["\n".join(lines[start : start + 7]) for start in range(0, len(lines), 7)]
    half = tmp_path / "a.jsonl.gz"
    half.write_bytes(gzip.compress("\n".join(json.dumps({"id": 7, "body": d}) for d in documents[:9]).encode()))
    rest = tmp_path / "b.txt"
    rest.write_text("\n\n".join(documents[9:]), encoding="utf-8")
    run_stage("tokenizer", SMALL, inputs=(str(story_file),), output=tmp_path / "text")
    settings = [*SMALL, "corpus.json_key=body"]
    result = run_stage("tokenizer", settings, inputs=(str(half), str(rest)), output=tmp_path / "json")
    assert result.metrics["lines"] == 120
    assert (tmp_path / "json.model").read_bytes() == (tmp_path / "text.model").read_bytes()


def test_lines_that_are_too_long_are_left_out_and_told(
    run_stage: RunStage, story: str, story_file: Path, tmp_path: Path
) -> None:
    longer = tmp_path / "longer.txt"
    # 200 bytes exactly fit; characters are not bytes.
    longer.write_text(story + "x" * 200 + "\n" + "長" * 67 + "\n" + "y" * 500 + "\n", encoding="utf-8")
    observer = Quiet()
    settings = [*SMALL, "tokenizer.max_line_bytes=200"]
    result = run_stage("tokenizer", settings, inputs=(str(longer),), output=tmp_path / "a", observer=observer)
    assert (result.metrics["lines"], result.metrics["long_lines"]) == (121, 2)
    assert observer.notes[0] == "2 lines longer than 200 bytes were left out (tokenizer.max_line_bytes)."
    fitting = tmp_path / "fitting.txt"
    fitting.write_text(story + "x" * 200 + "\n", encoding="utf-8")
    run_stage("tokenizer", settings, inputs=(str(fitting),), output=tmp_path / "b")
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    with pytest.raises(StageFailed) as failure:
        run_stage(
            "tokenizer", [*SMALL, "tokenizer.max_line_bytes=16"], inputs=(str(story_file),), output=tmp_path / "c"
        )
    assert failure.value.error.problems[0].code == "data.empty"
    assert "tokenizer.max_line_bytes" in failure.value.error.problems[0].hint


def test_a_vocabulary_larger_than_the_text_allows(run_stage: RunStage, story_file: Path) -> None:
    with pytest.raises(StageFailed) as failure:
        run_stage("tokenizer", ["tokenizer.vocab_size=30000"], dataset=story_file)
    problem = failure.value.error.problems[0]
    assert problem.code == "tokenizer.vocab-too-large"
    assert problem.hint.startswith("`--set tokenizer.vocab_size=")
    # The hint is true: what it says works, and one more does not.
    most = problem.hint.strip("`").split()[-1]
    assert run_stage("tokenizer", [most], dataset=story_file).state == "ran"
    name, _equals, value = most.partition("=")
    with pytest.raises(StageFailed):
        run_stage("tokenizer", [f"{name}={int(value) + 1}"], dataset=story_file)


def test_a_vocabulary_smaller_than_the_characters_need(run_stage: RunStage, tmp_path: Path) -> None:
    source = tmp_path / "kanji.txt"
    source.write_text(
        "".join(chr(0x4E00 + i) + ("\n" if i % 20 == 19 else "") for i in range(200)) * 3, encoding="utf-8"
    )
    with pytest.raises(StageFailed) as failure:
        run_stage("tokenizer", ["tokenizer.vocab_size=300"], dataset=source)
    problem = failure.value.error.problems[0]
    assert problem.code == "tokenizer.vocab-too-small"
    assert run_stage("tokenizer", [problem.hint.strip("`").split()[-1]], dataset=source).state == "ran"


def test_a_text_too_small_for_any_tokenizer(run_stage: RunStage, tmp_path: Path) -> None:
    source = tmp_path / "tiny.txt"
    source.write_text("hello\n", encoding="utf-8")
    with pytest.raises(StageFailed) as failure:
        run_stage("tokenizer", SMALL, dataset=source)
    problem = failure.value.error.problems[0]
    assert (problem.code, problem.hint) == ("tokenizer.vocab-too-large", "Give more text.")


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n"])
def test_an_empty_text(run_stage: RunStage, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "empty.txt"
    source.write_bytes(content)
    with pytest.raises(StageFailed) as failure:
        run_stage("tokenizer", SMALL, dataset=source)
    assert [problem.code for problem in failure.value.error.problems] == ["data.empty"]
    assert not (tmp_path / "output" / "custom" / "tokenizer" / "tokenizer.model").exists()


def test_everything_wrong_with_the_texts_is_told_at_once(run_stage: RunStage, story_file: Path, tmp_path: Path) -> None:
    latin, broken = tmp_path / "latin.txt", tmp_path / "broken.jsonl"
    latin.write_bytes("café, oui\n".encode("latin-1"))
    broken.write_bytes(b'{"text": "fine"}\n{"text": \n[]\n')
    with pytest.raises(StageFailed) as failure:
        run_stage("tokenizer", SMALL, inputs=(str(story_file), str(latin), str(broken)), output=tmp_path / "t")
    assert [problem.what for problem in failure.value.error.problems] == [
        f"{latin} is not UTF-8: line 1, byte 4.",
        f"Line 2 of {broken} cannot be used.",
        f"Line 3 of {broken} cannot be used.",
    ]
    observer = Quiet()
    settings = [*SMALL, "corpus.on_bad_line=skip"]
    result = run_stage(
        "tokenizer", settings, inputs=(str(story_file), str(broken)), output=tmp_path / "t", observer=observer
    )
    assert (result.metrics["lines"], result.metrics["bad_lines"]) == (121, 2)
    assert observer.notes[0].startswith("2 bad lines were left out")


def test_verify_names_what_is_wrong(
    run_stage: RunStage, story_file: Path, tmp_path: Path, env_python: Path, shared: Path
) -> None:
    run_stage("tokenizer", SMALL, dataset=story_file)
    home = tmp_path / "output" / "custom" / "tokenizer"
    program = """
import json, sys
from pathlib import Path
from pipeline.child import Job
from pipeline import tokenizer
data = json.loads(Path(sys.argv[1]).read_text())
data["config"]["tokenizer"]["vocab_size"] = int(sys.argv[4])
data["outputs"] = {"model": sys.argv[2], "vocab": sys.argv[3]}
Path(sys.argv[1]).write_text(json.dumps(data))
print(json.dumps(tokenizer.verify(Job.load(Path(sys.argv[1])))))
"""

    def verify(model: Path, vocab: Path, size: int) -> list[str]:
        argv = [str(env_python), "-c", program, str(home / "job.json"), str(model), str(vocab), str(size)]
        done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return list(json.loads(done.stdout))

    model, vocab = home / "tokenizer.model", home / "tokenizer.vocab"
    assert verify(model, vocab, 320) == []
    assert verify(model, vocab, 321) == ["The tokenizer has 320 pieces, not 321."]
    other = shared / "oracle" / "tokenizer" / "botchan.vocab"
    assert verify(model, other, 320) == ["The .vocab file does not list the pieces of the .model file."]


def test_the_published_vocabulary(run_stage: RunStage, shared: Path, tmp_path: Path, env_python: Path) -> None:
    run_stage("tokenizer", dataset=botchan())
    _model, ours = outputs(tmp_path / "output" / "custom" / "tokenizer")
    published = (shared / "oracle" / "tokenizer" / "botchan.vocab").read_bytes().decode("utf-8")
    ask = "import sentencepiece; print(sentencepiece.__version__)"
    version = subprocess.run([str(env_python), "-c", ask], capture_output=True, text=True, check=True).stdout.split(".")
    if [int(part) for part in version] <= [0, 2, 1]:
        assert ours == published
    else:
        # From 0.2.2 on the library's own trainer gives another result from the same file and options: 33 pieces of
        # 2,000 with 0.2.3. Feeding the lines in another way (without their carriage returns) changes more than 200.
        assert len(Counter(pieces(ours)) - Counter(pieces(published))) <= 40


def test_the_plan_reads_nothing_and_keeps_out_what_does_not_matter(tmp_path: Path) -> None:
    config = resolve("", [])
    plan = tokenizer.plan("tokenizer", config, Sources(tmp_path, dataset=tmp_path / "missing.txt"))
    assert plan.inputs == {"input 1": tmp_path / "missing.txt"}
    assert plan.outputs == {
        "model": tmp_path / "tokenizer" / "tokenizer.model",
        "vocab": tmp_path / "tokenizer" / "tokenizer.vocab",
    }
    other = resolve("", ["corpus.lines_per_document=3", "corpus.json_key=x", "pretrain.steps=20"])
    assert tokenizer.plan("tokenizer", other, Sources(tmp_path, dataset=tmp_path / "missing.txt")) == plan
