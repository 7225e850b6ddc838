"""What a recipe and the command line may say, and that every problem is told at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.config import Config, canonical_json, padded_vocab_size, section
from pipeline.errors import Problem, UcllmError
from pipeline.recipe import load_toml, recipe_names, resolve


def _problems(*settings: str, recipe: str = "", **overrides: object) -> tuple[Problem, ...]:
    with pytest.raises(UcllmError) as caught:
        resolve(recipe, settings, overrides)
    return caught.value.problems


def _recipe(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_defaults_are_valid() -> None:
    assert resolve("") == Config()


@pytest.mark.parametrize("name", recipe_names())
def test_our_own_recipes_are_valid(name: str) -> None:
    assert resolve(name).name == name


def test_later_wins_over_earlier(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "[pretrain]\nsteps = 7\nseed = 7\nsave_interval = 7\n")
    config = resolve(recipe, ["pretrain.seed=8", "pretrain.save_interval=8"], {"pretrain.save_interval": 9})
    assert (config.pretrain.steps, config.pretrain.seed, config.pretrain.save_interval) == (7, 8, 9)
    assert config.pretrain.log_interval == Config().pretrain.log_interval
    assert (config.name, resolve(_recipe(tmp_path, 'name = "x"')).name) == ("mine", "x")


def test_one_run_never_changes_the_defaults_of_another() -> None:
    resolve("").data.input.append("x")
    assert resolve("").data.input == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("pretrain.steps=1_000", 1000),
        ("pretrain.learning_rate=1e-4", 1e-4),
        ("pretrain.learning_rate=1", 1.0),
        ("corpus.append_eod=False", False),
        ("upload.prompt=a=b", "a=b"),
        ("upload.prompt=", ""),
        ("data.input=a.txt", ["a.txt"]),
        ("corpus.on_bad_line=skip", "skip"),
    ],
)
def test_set_is_read_as_the_keys_type(setting: str, value: object) -> None:
    config = resolve("", [setting])
    table, _dot, key = setting.partition("=")[0].partition(".")
    found = section(config, table)[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("pretrain.steps=many", "it must be a whole number"),
        ("pretrain.steps=1.5", "it must be a whole number"),
        ("pretrain.steps=", "it must be a whole number"),
        ("pretrain.steps=0", "it must be at least 1"),
        ("pretrain.learning_rate=fast", "it must be a number"),
        ("pretrain.learning_rate=nan", "it must be a finite number"),
        ("pretrain.learning_rate=inf", "it must be a finite number"),
        ("finetune.epochs=0", "it must be more than 0.0"),
        ("model.dropout=1", "it must be at most 0.9"),
        ("corpus.append_eod=yes", "it must be true or false"),
        ("corpus.on_bad_line=ignore", "it must be one of error, skip"),
        ("tokenizer.vocab_size=299", "it must be at least 300"),
    ],
)
def test_a_value_that_is_not_possible(setting: str, reason: str) -> None:
    (problem,) = [item for item in _problems(setting) if item.code != "config.contradiction"]
    assert problem.code == "config.invalid-value"
    assert problem.what == f"`{setting}` in --set is not possible: {reason}."


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('steps = "5"', ""),
        ("steps = 5.0", "it must be a whole number"),
        ("steps = true", "it must be a whole number"),
        ("engine = 5", "it must be a text"),
        ("learning_rate = true", "it must be a number"),
        ("steps = 2024-01-01", "it must be a whole number"),
        ("engine = []", "it must be a text"),
    ],
)
def test_a_recipes_values_have_their_type_already(tmp_path: Path, line: str, reason: str) -> None:
    recipe = _recipe(tmp_path, f"[pretrain]\n{line}\n")
    if not reason:
        assert resolve(recipe).pretrain.steps == 5
        return
    (problem,) = _problems(recipe=recipe)
    assert reason in problem.what
    assert recipe in problem.what


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("pretrain.step=5", "Did you mean `pretrain.steps`?"),
        ("pretrian.steps=5", "Did you mean `pretrain.steps`?"),
        ("steps=5", "Known: data, tokenizer, corpus, model, parallel, pretrain, finetune, wandb, upload"),
        ("corpus=5", "Known: corpus.json_key, "),
        ("corpus.json_key.x=5", "Did you mean `corpus.json_key`?"),
        ("=5", "Known: data"),
        ("name=x", "Known: data"),
    ],
)
def test_an_unknown_key_says_which_is_near(setting: str, hint: str) -> None:
    (problem,) = _problems(setting)
    assert problem.code == "config.unknown-key"
    assert problem.hint.startswith(hint)


def test_a_setting_without_an_equals_sign() -> None:
    (problem,) = _problems("pretrain.steps")
    assert (problem.code, problem.hint) == ("config.syntax", "Write `--set pretrain.steps=100`.")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[pretrian]\n", "Unknown key `pretrian`"),
        ("pretrain = 5\n", "`pretrain` in {path} must be a table: [pretrain]."),
        ("[pretrain.steps]\nx = 1\n", "it must be a whole number"),
        ('name = "../elsewhere"\n', "`name` in {path} must be the name of a folder."),
        ('name = ""\n', "`name` in {path} must be the name of a folder."),
        ("name = 5\n", "`name` in {path} must be the name of a folder."),
        ("[name]\n", "`name` in {path} must be the name of a folder."),
    ],
)
def test_a_recipe_of_the_wrong_form(tmp_path: Path, text: str, what: str) -> None:
    recipe = _recipe(tmp_path, text)
    (problem,) = _problems(recipe=recipe)
    assert what.format(path=recipe) in problem.what


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "[tokenizer]\nvocab_size = 1\n[modle]\nlayers = 1\n")
    found = _problems("pretrain.steps=none", "pretrain.engine", "model.heads=7", recipe=recipe)
    codes = [problem.code for problem in found]
    assert codes == [
        "config.invalid-value",
        "config.unknown-key",
        "config.invalid-value",
        "config.syntax",
        "config.contradiction",
    ]


def test_an_unknown_recipe_is_one_problem_of_several() -> None:
    first, second = _problems("pretrain.step=5", recipe="botchan-tny")
    assert (first.code, first.hint) == ("recipe.unknown", "Did you mean `botchan-tiny`?")
    assert second.code == "config.unknown-key"


def test_recipes_that_cannot_be_read(tmp_path: Path) -> None:
    (problem,) = _problems(recipe=str(tmp_path / "gone.toml"))
    assert (problem.code, problem.why) == ("recipe.unreadable", "No such file or directory")
    (problem,) = _problems(recipe=_recipe(tmp_path, "not toml"))
    assert problem.code == "recipe.not-toml"
    (tmp_path / "mine.toml").write_bytes(b'name = "\xff"')
    (problem,) = _problems(recipe=str(tmp_path / "mine.toml"))
    assert problem.code == "recipe.not-toml"
    with pytest.raises(UcllmError):
        load_toml(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.hidden_size=100", "model.heads=3"], "model.hidden_size 100 is not divisible by model.heads 3"),
        (["pretrain.micro_batch_size=3"], "pretrain.global_batch_size 256 is not divisible"),
        (["pretrain.steps=5", "pretrain.warmup_steps=6"], "pretrain.warmup_steps 6 is more than pretrain.steps 5"),
        (["pretrain.min_learning_rate=1"], "pretrain.min_learning_rate is more than"),
        (["pretrain.seq_length=8", "finetune.max_seq_length=9"], "finetune.max_seq_length 9 is longer than the model"),
    ],
)
def test_values_that_contradict_each_other(settings: list[str], words: str) -> None:
    (problem,) = _problems(*settings)
    assert problem.code == "config.contradiction"
    assert words in problem.what


def test_every_key_can_be_set_by_its_name() -> None:
    """`--set` reaches every field: setting each to its default changes nothing."""
    config = Config()
    settings = []
    for table in dataclasses.fields(Config):
        if table.name not in ("name", "description"):
            values = section(config, table.name)
            settings += [f"{table.name}.{key}={value}" for key, value in values.items() if not isinstance(value, list)]
    assert resolve("", settings) == config


@pytest.mark.parametrize(("size", "padded"), [(2000, 2048), (125, 128), (126, 256), (32000, 32128)])
def test_the_vocabulary_is_padded_like_megatrons(size: int, padded: int) -> None:
    assert padded_vocab_size(size) == padded


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": "あ"}) == canonical_json({"a": "あ", "b": 1}) == '{"a": "あ", "b": 1}'
