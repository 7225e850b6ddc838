"""What is broken: `train pretrain` refuses and starts nothing, `doctor --fix` repairs, the same command trains."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bootstrap.profiles import locks_dir
from tests.bootstrap.conftest import Tiny, relocate
from tests.bootstrap.megatron import FOREIGN, pybind11_folder
from tests.faults.conftest import git, write_origin
from tests.test_whole_run import story

pytestmark = pytest.mark.env

RECIPE = """
name = "small"
[data]
input = ["{text}"]
[tokenizer]
vocab_size = 310
[corpus]
lines_per_document = 4
[model]
layers = 1
hidden_size = 16
heads = 2
[pretrain]
steps = 2
seq_length = 32
micro_batch_size = 2
global_batch_size = 2
eval_interval = 2
save_interval = 2
"""


@pytest.fixture
def small(tmp_path: Path, env_python: Path) -> Tiny:
    """Profile `cpu` on the shared environment, with a recipe of seconds whose corpus is made."""
    shutil.copytree(locks_dir() / "cpu", tmp_path / "locks" / "cpu")
    text_file = tmp_path / "story.txt"
    text_file.write_text(story(), encoding="utf-8")
    (tmp_path / "small.toml").write_text(RECIPE.format(text=text_file), encoding="utf-8")
    tiny = Tiny(tmp_path)
    tiny.workspace.mkdir()
    (tiny.workspace / ".venv").symlink_to(env_python.parents[1])
    for stage in ("tokenizer", "corpus"):
        made = tiny("train", stage, *_options(tiny))
        assert made.code == 0, made.out + made.err
    return tiny


def _options(tiny: Tiny) -> tuple[str, ...]:
    return ("--json", "--profile", "cpu", "--recipe", str(tiny.root / "small.toml"))


def _data(tiny: Tiny) -> Path:
    return tiny.workspace / "output" / "small" / "corpus" / "corpus_text_document.bin"


def test_a_truncated_corpus_is_refused_repaired_and_trained_on(small: Tiny) -> None:
    data = _data(small)
    whole = data.read_bytes()
    assert small.doctor("--profile", "cpu").statuses["data.corpus"] == "ok"
    data.write_bytes(whole[:-100])

    refused = small("train", "pretrain", *_options(small))
    assert (refused.code, refused.json["status"]) == (1, "refused")
    (problem,) = refused.json["errors"]
    assert problem["code"] == "check.data.corpus"
    assert problem["message"].startswith("data.corpus: The corpus of small")
    assert f"ucllm doctor --fix --workspace {small.workspace}" in problem["hint"]
    assert refused.json["data"]["stages"] == []
    assert not (small.workspace / "output" / "small" / "pretrain").exists()
    # A dry run says the same, and is not stopped by it.
    dry = small("train", "pretrain", "--dry-run", *_options(small))
    assert (dry.code, dry.statuses["data.corpus"]) == (0, "fail")
    # What makes the corpus is not refused for it, neither alone nor as part of the whole.
    for stage in ("corpus", "all"):
        assert "data.corpus" not in small("train", stage, "--dry-run", *_options(small)).statuses

    fixed = small.doctor("--profile", "cpu", "--fix", "--yes")
    assert fixed.code == 0, fixed.out + fixed.err
    assert [item["requirement"] for item in fixed.json["data"]["actions"]] == ["data.corpus"] * 2
    assert data.read_bytes() == whole
    assert len(small.backups) == 2

    trained = small("train", "pretrain", *_options(small))
    assert trained.code == 0, trained.out + trained.err
    (stage,) = trained.json["data"]["stages"]
    assert (stage["stage"], stage["state"]) == ("pretrain", "ran")
    corpus = small("train", "corpus", *_options(small)).json["data"]["stages"]
    assert [item["state"] for item in corpus] == ["up-to-date"], "the repair made what the stage would have made"


def test_another_tokenizer_is_found_and_a_lost_text_is_left_to_the_user(small: Tiny) -> None:
    again = small("train", "tokenizer", *_options(small), "--set", "tokenizer.vocab_size=312")
    assert again.code == 0, again.out + again.err
    text_file = small.root / "story.txt"
    text_file.rename(small.root / "away.txt")
    seen = small.doctor("--profile", "cpu", "--fix", "--yes")
    (finding,) = [item for item in seen.json["data"]["findings"] if item["id"] == "data.corpus"]
    assert (seen.code, finding["status"], finding["remedy"]["automatic"]) == (1, "fail", False)
    assert str(text_file) in finding["remedy"]["text"]
    assert small.backups == []

    (small.root / "away.txt").rename(text_file)
    fixed = small.doctor("--profile", "cpu", "--fix", "--yes")
    assert (fixed.code, fixed.statuses["data.corpus"]) == (0, "ok"), fixed.out + fixed.err


def test_no_checks_starts_all_the_same(small: Tiny) -> None:
    _data(small).write_bytes(b"")
    started = small("train", "pretrain", "--no-checks", *_options(small))
    assert started.code == 12
    assert [item["code"] for item in started.json["errors"]] == ["corpus.damaged"]


def _link(source: str, target: str) -> str:
    """Share the gigabyte of packages with the environment it comes from; what may be written to is copied."""
    if "/lib/" in source:
        os.link(source, target)
    else:
        shutil.copy2(source, target)
    return target


def test_helpers_of_another_python_are_refused_built_and_trained_on(small: Tiny, env_python: Path) -> None:
    """Profile `cpu` with a checkout whose helpers must be right, as in the profiles of the guide."""
    (small.workspace / ".venv").unlink()
    there = env_python.parents[2]
    shutil.copytree(env_python.parents[1], small.env, symlinks=True, copy_function=_link)
    relocate(there, small)
    for path in pybind11_folder().glob("pybind11*"):
        shutil.copytree(path, small.site / path.name)
    origin = write_origin(small.root)
    profile = small.lock.parent / "cpu" / "profile.toml"
    text = profile.read_text(encoding="utf-8").replace(
        '"data.recipe"', '"source.megatron", "build.helpers", "data.recipe"'
    )
    commit = git(origin, "rev-parse", "v1")
    text += f'\n[sources.megatron]\nurl = "{origin}"\nfolder = "Megatron-DeepSpeed"\ntag = "v1"\ncommit = "{commit}"\n'
    profile.write_text(text, encoding="utf-8")
    made = small.doctor("--profile", "cpu", "--fix", "--yes")
    assert (made.code, made.statuses["build.helpers"]) == (0, "ok"), made.out + made.err
    (helpers,) = (small.workspace / "Megatron-DeepSpeed" / "megatron" / "data").glob("helpers*.so")
    helpers.rename(helpers.with_name(f"helpers{FOREIGN}"))

    refused = small("train", "pretrain", *_options(small))
    assert (refused.code, [item["code"] for item in refused.json["errors"]]) == (1, ["check.build.helpers"])
    assert not (small.workspace / "output" / "small" / "pretrain").exists()
    fixed = small.doctor("--profile", "cpu", "--fix", "--yes")
    assert (fixed.code, fixed.statuses["build.helpers"]) == (0, "ok"), fixed.out + fixed.err
    trained = small("train", "pretrain", *_options(small))
    assert trained.code == 0, trained.out + trained.err
