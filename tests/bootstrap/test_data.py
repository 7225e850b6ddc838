"""Corpora and recipes: what is read of them, what is said about them, and a corpus that is made again."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bootstrap.requirements.data_corpus as corpus_module
from bootstrap.datasets import path_of
from bootstrap.facts import Corpus, DataFacts, Facts, Gpu, GpuFacts, MachineFacts, Recipe
from bootstrap.facts import data as collector
from bootstrap.facts.collect import Request
from bootstrap.journal import Journal, Recorder, fixes, undo
from bootstrap.profiles import Gpu as DeclaredGpu
from bootstrap.profiles import Profile, TorchBuild, load
from bootstrap.requirements import data_recipe
from bootstrap.workspace import Workspace
from pipeline import runs
from pipeline.config import section
from pipeline.errors import UcllmError
from pipeline.recipe import resolve

PROFILE = load("cpu")
CORPUS = Corpus("tiny", "/w/output/tiny/corpus/c_text_document", "/w/output/tiny/corpus", tokenizer_matches=True)
RECIPE = Recipe("tiny", "torch", 8, 2, heads=4, layers=4, sequence=128, memory=10**9, disk=10**8)
HEALTHY = Facts(
    "/w",
    machine=MachineFacts(memory_available=8 * 10**9),
    data=DataFacts((CORPUS,), RECIPE),
    collected=("data", "machine", "gpu"),
)
ON_GPU = replace(PROFILE, torch_build=TorchBuild("2.2.0", "12.1"))


def _with_corpus(**changes: Any) -> Facts:
    return replace(HEALTHY, data=replace(HEALTHY.data, corpora=(replace(CORPUS, **changes),)))


def _with_recipe(**changes: Any) -> Facts:
    return replace(HEALTHY, data=replace(HEALTHY.data, recipe=replace(RECIPE, **changes)))


def test_recipe_healthy_and_unreadable() -> None:
    assert data_recipe.check(PROFILE, HEALTHY).status == "ok"
    finding = data_recipe.check(PROFILE, replace(HEALTHY, data=DataFacts(recipe_error="There is no recipe `x`.")))
    assert finding.status == "skipped"
    assert "no recipe `x`" in finding.summary


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"global_batch": 7}, "global batch 7 is no multiple of micro batch x copies of the model 2"),
        ({"gpus": 8, "tensor_parallel": 2, "global_batch": 12}, "global batch 12 is no multiple"),
        ({"gpus": 6, "tensor_parallel": 4}, "GPUs 6 is no multiple of tensor x pipeline parallel 4"),
        ({"gpus": 3, "tensor_parallel": 3, "heads": 4}, "heads 4 is no multiple of tensor parallel 3"),
        ({"gpus": 3, "pipeline_parallel": 3}, "layers 4 is no multiple of pipeline parallel 3"),
        ({"micro_batch": 0}, "micro batch x copies of the model 0"),
        ({"tensor_parallel": 0}, "heads 4 is no multiple of tensor parallel 0"),
    ],
)
def test_sizes_that_do_not_divide(changes: dict[str, int], words: str) -> None:
    finding = data_recipe.check(PROFILE, _with_recipe(**changes))
    assert finding.status == "fail"
    assert words in "\n".join(finding.evidence)
    assert finding.remedy is not None


def test_sizes_that_divide_over_gpus() -> None:
    facts = _with_recipe(gpus=8, tensor_parallel=2, pipeline_parallel=2)
    assert data_recipe.check(PROFILE, facts).status == "ok"


def _gpus(*sizes: int | None) -> Facts:
    return replace(HEALTHY, gpu=GpuFacts("nvml", devices=tuple(Gpu("L4", memory=size) for size in sizes)))


@pytest.mark.parametrize(
    ("profile", "facts", "status"),
    [
        (PROFILE, replace(HEALTHY, machine=MachineFacts(memory_available=9 * 10**8)), "warn"),
        (PROFILE, replace(HEALTHY, machine=MachineFacts()), "unknown"),
        (ON_GPU, _gpus(24 * 10**9), "ok"),
        (ON_GPU, _gpus(24 * 10**9, 5 * 10**8), "warn"),
        (ON_GPU, _gpus(None), "unknown"),
        (ON_GPU, HEALTHY, "unknown"),
        (ON_GPU, replace(HEALTHY, collected=("data", "machine")), "ok"),
        (replace(ON_GPU, gpu=DeclaredGpu("L4", "8.9", 24)), HEALTHY, "ok"),
        (replace(ON_GPU, gpu=DeclaredGpu("L4", "8.9", 0.5)), HEALTHY, "warn"),
    ],
)
def test_memory(profile: Profile, facts: Facts, status: str) -> None:
    assert data_recipe.check(profile, facts).status == status


def test_corpus_healthy_none_and_unknown() -> None:
    assert corpus_module.check(PROFILE, HEALTHY).status == "ok"
    assert corpus_module.check(PROFILE, replace(HEALTHY, data=DataFacts())).status == "skipped"
    assert corpus_module.check(PROFILE, _with_corpus(tokenizer_matches=None)).status == "unknown"
    assert corpus_module.check(PROFILE, _with_corpus(error="Permission denied")).status == "unknown"


def test_corpus_bad() -> None:
    for changes in ({"problems": ("c.bin is missing.",)}, {"tokenizer_matches": False}):
        finding = corpus_module.check(PROFILE, _with_corpus(**changes))
        assert (finding.status, finding.remedy and finding.remedy.automatic) == ("fail", True)
        standard = corpus_module.check(PROFILE, _with_corpus(**changes, standard=True))
        assert standard.remedy is not None
        assert standard.remedy.commands[-1] == "ucllm train corpus --recipe tiny --workspace /w"
        lost = _with_corpus(**changes, missing_inputs=("/t.txt",))
        finding = corpus_module.check(PROFILE, lost)
        assert finding.remedy is not None
        assert not finding.remedy.automatic
        assert "/t.txt" in finding.remedy.text
        assert corpus_module.plan(PROFILE, lost, Workspace(Path("/w"))) == []


def _write_corpus(prefix: Path, documents: list[list[int]]) -> None:
    """The format, written by its description: no NumPy here either."""
    sizes = [len(tokens) for tokens in documents]
    starts = [2 * start for start in itertools.accumulate(sizes, initial=0)][:-1]
    n, flat = len(documents), [token for tokens in documents for token in tokens]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, n, n + 1)
    index += struct.pack(f"<{n}i{n}q{n + 1}q", *sizes, *starts, *range(n + 1))
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    prefix.with_name(prefix.name + ".bin").write_bytes(struct.pack(f"<{len(flat)}H", *flat))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with a corpus of recipe botchan-tiny, of ids that nobody trained on, and its manifest."""
    place = Workspace(tmp_path / "ws")
    root = place.output / "botchan-tiny"
    _write_corpus(_prefix(place), [[1, 2, 3], [4], [5, 6]])
    inputs = {"input 1": place.root / "data" / "botchan.txt", "tokenizer": root / "tokenizer" / "tokenizer.model"}
    for path in inputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name, encoding="utf-8")
    settings = section(resolve("botchan-tiny"), "corpus")
    kept = {key: settings[key] for key in ("append_eod", "start_after", "end_before", "lines_per_document")}
    runs.write_manifest(
        root / "corpus",
        {
            "manifest_version": runs.MANIFEST_VERSION,
            "stage": "corpus",
            "status": "complete",
            "fingerprint": "made by a test",
            "config": {"corpus": kept},
            "inputs": {name: runs.describe(path) for name, path in inputs.items()},
            "outputs": {kind: runs.describe(_file(place, kind)) for kind in ("bin", "idx")},
            "metrics": {},
        },
    )
    return place


def _prefix(place: Workspace) -> Path:
    return place.output / "botchan-tiny" / "corpus" / "corpus_text_document"


def _file(place: Workspace, kind: str) -> Path:
    return Path(f"{_prefix(place)}.{kind}")


def _facts(place: Workspace, **more: Any) -> Facts:
    found = collector.collect(Request(PROFILE, place, **more))
    return replace(HEALTHY, workspace=str(place.root), data=found)


def test_collected(workspace: Workspace) -> None:
    (workspace.output / "empty").mkdir()
    (workspace.output / "a file").touch()
    data = _facts(workspace).data
    (corpus,) = data.corpora
    assert (corpus.recipe, corpus.problems, corpus.tokenizer_matches) == ("botchan-tiny", (), True)
    assert (corpus.missing_inputs, corpus.error) == ((), "")
    assert data.recipe is not None
    assert data.recipe.name == PROFILE.recipe
    assert data.recipe.memory > 10**8
    # A training that is about to start: its corpus alone, and its numbers.
    config = resolve("", ["pretrain.micro_batch_size=4"])
    other = _facts(workspace, config=config).data
    assert (other.corpora, other.recipe and other.recipe.micro_batch) == ((), 4)


def test_an_empty_workspace_and_an_unknown_recipe(tmp_path: Path) -> None:
    found = collector.collect(Request(replace(PROFILE, recipe="not-here"), Workspace(tmp_path / "none")))
    assert (found.corpora, found.recipe) == ((), None)
    assert "not-here" in found.recipe_error


def test_a_standard_corpus_is_told_by_its_recipe(workspace: Workspace) -> None:
    manifest = runs.read_manifest(_prefix(workspace).parent)
    assert manifest is not None
    text = workspace.root / "data" / "botchan.txt"
    real = path_of("botchan", workspace)
    text.rename(real)
    manifest["inputs"]["input 1"] = runs.describe(real)
    runs.write_manifest(_prefix(workspace).parent, manifest)
    assert _facts(workspace).data.corpora[0].standard
    manifest["config"]["corpus"]["lines_per_document"] = 3
    runs.write_manifest(_prefix(workspace).parent, manifest)
    assert not _facts(workspace).data.corpora[0].standard


@pytest.mark.parametrize("fault", ["short bin", "no idx", "idx", "tokenizer"])
def test_faults_are_found(workspace: Workspace, fault: str) -> None:
    assert corpus_module.check(PROFILE, _facts(workspace)).status == "ok"
    if fault == "short bin":
        _file(workspace, "bin").write_bytes(_file(workspace, "bin").read_bytes()[:-2])
    elif fault == "no idx":
        _file(workspace, "idx").unlink()
    elif fault == "idx":
        _file(workspace, "idx").write_bytes(b"MMIDIDX")
    else:
        (workspace.output / "botchan-tiny" / "tokenizer" / "tokenizer.model").write_text("other", encoding="utf-8")
    assert corpus_module.check(PROFILE, _facts(workspace)).status == "fail"


def test_a_lost_tokenizer_and_a_run_that_did_not_end(workspace: Workspace) -> None:
    (workspace.output / "botchan-tiny" / "tokenizer" / "tokenizer.model").unlink()
    assert corpus_module.check(PROFILE, _facts(workspace)).status == "unknown"
    (_prefix(workspace).parent / "manifest.json").unlink()
    assert corpus_module.check(PROFILE, _facts(workspace)).status == "skipped"


#: Instead of the stage: it makes the corpus that the fixture made. The real stage is in tests/cli/test_gate.py.
_CHILD = """
import json, os, pathlib, shutil, sys
job = json.loads(pathlib.Path(sys.argv[-1]).read_text())
pathlib.Path(job["work"]).mkdir(parents=True, exist_ok=True)
for path in job["outputs"].values():
    shutil.copy(pathlib.Path(SOURCE) / pathlib.Path(path).name, path)
os.write(int(os.environ["UCLLM_EVENTS_FD"]), (json.dumps({"event": "done", "metrics": {}}) + "\\n").encode())
"""


def test_a_truncated_corpus_is_made_again_and_undo_restores_it(workspace: Workspace, tmp_path: Path) -> None:
    whole = {kind: _file(workspace, kind).read_bytes() for kind in ("bin", "idx")}
    source = tmp_path / "source"
    source.mkdir()
    for kind, body in whole.items():
        (source / _file(workspace, kind).name).write_bytes(body)
    workspace.python.parent.mkdir(parents=True)
    (tmp_path / "child.py").write_text(f"SOURCE = {str(source)!r}\n{_CHILD}", encoding="utf-8")
    workspace.python.write_text(f'#!/bin/sh\nexec {sys.executable} -I {tmp_path / "child.py"} "$@"\n', encoding="utf-8")
    workspace.python.chmod(0o755)
    before = json.loads((_prefix(workspace).parent / "manifest.json").read_text(encoding="utf-8"))
    _file(workspace, "bin").write_bytes(whole["bin"][:-2])

    facts = _facts(workspace)
    assert corpus_module.check(PROFILE, facts).status == "fail"
    journal, said = Journal(workspace), list[str]()
    actions = corpus_module.plan(PROFILE, facts, workspace)
    assert len(actions) == 2
    for action in actions:
        assert action.commands
        action.act(Recorder(journal, 1, "data.corpus", said.append))
    healed = _facts(workspace)
    assert corpus_module.check(PROFILE, healed).status == "ok"
    assert corpus_module.plan(PROFILE, healed, workspace) == []
    assert {kind: _file(workspace, kind).read_bytes() for kind in whole} == whole
    after = json.loads((_prefix(workspace).parent / "manifest.json").read_text(encoding="utf-8"))
    assert (after["config"], after["inputs"]) == (before["config"], before["inputs"])

    undo(journal, fixes(journal)[0])
    assert _file(workspace, "bin").read_bytes() == whole["bin"][:-2]


def test_a_stage_that_fails_is_told(workspace: Workspace) -> None:
    _file(workspace, "bin").write_bytes(b"")
    actions = corpus_module.plan(PROFILE, _facts(workspace), workspace)
    doing = Recorder(Journal(workspace), 1, "data.corpus", lambda _text: None)
    actions[0].act(doing)
    with pytest.raises(UcllmError) as failure:  # there is no Python in this workspace
        actions[1].act(doing)
    assert [problem.code for problem in failure.value.problems] == ["stage.not-started"]
