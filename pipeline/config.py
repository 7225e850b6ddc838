"""The configuration of steps 1 to 5: what a recipe may say, its types, its limits.

A recipe is TOML with one table per dataclass below. Values come, later over earlier, from the defaults here, the
recipe, ``--set a.b=c``, and the options of the command. Every problem is found before anything starts, all at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, UcllmError, did_you_mean
from pipeline.i18n import N_, _

RECIPES_DIR = Path(__file__).parent / "recipes"


def _value(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field with its limits: ``low <= value <= high``, ``value > above``, or one of ``choices``."""
    limits = {"low": low, "high": high, "above": above, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=limits)
    return field(default=default, metadata=limits)


@dataclass
class DataConfig:
    """The text that the tokenizer and corpus stages read."""

    #: A name of ``recipes/datasets.toml``; fetched once, checked by sha256. Empty: ``input`` must name files.
    dataset: str = _value("")
    #: Files of one's own, instead of ``dataset``: text or JSONL, plain or ``.gz``.
    input: list[str] = _value([])


@dataclass
class TokenizerConfig:
    """Step 1. The options that are not here are the published ones and fixed: see ``pipeline/tokenizer.py``."""

    #: The seed's ``--vocab_size``. 7 special tokens, newline, <unk> and 256 byte pieces are part of it.
    vocab_size: int = _value(2000, low=300, high=1_000_000)
    character_coverage: float = _value(0.9995, above=0.0, high=1.0)
    #: Pinned, because SentencePiece's result depends on the number of threads.
    num_threads: int = _value(2, low=1, high=1024)
    #: Lines longer than this many bytes are left out of tokenizer training (SentencePiece's own default).
    max_line_bytes: int = _value(4192, low=16)


@dataclass
class CorpusConfig:
    """Step 2, first half: text to Megatron's ``.bin/.idx``."""

    #: The key of each JSON line that holds the text.
    json_key: str = _value("text")
    #: A document of a plain text file is this many non-empty lines; 0 makes each file one document.
    lines_per_document: int = _value(20, low=0)
    #: Of a plain text, read only what follows the first line that begins so, and what comes before the first later
    #: line that begins so: for the licence around a public-domain book. Empty: from the beginning, to the end. The
    #: tokenizer still learns from the whole file, as the seed's does.
    start_after: str = _value("")
    end_before: str = _value("")
    #: End every document with <EOD>.
    append_eod: bool = _value(True)
    #: ``error`` stops at the first bad JSON line before anything is published; ``skip`` counts and reports them.
    on_bad_line: str = _value("error", choices=("error", "skip"))


@dataclass
class ModelConfig:
    """The shape of the GPT-2 model."""

    layers: int = _value(12, low=1, high=1024)
    hidden_size: int = _value(768, low=8)
    heads: int = _value(12, low=1)
    dropout: float = _value(0.1, low=0.0, high=0.9)


@dataclass
class PretrainConfig:
    """Step 2, second half."""

    engine: str = _value("torch", choices=("torch",))
    #: Optimizer steps, the stop of the run.
    steps: int = _value(1000, low=1)
    #: Tokens a sample; also the model's number of positions.
    seq_length: int = _value(2048, low=8)
    #: Samples on the device at once.
    micro_batch_size: int = _value(1, low=1)
    #: Samples an optimizer step; the rest is gradient accumulation.
    global_batch_size: int = _value(256, low=1)
    learning_rate: float = _value(6.0e-4, above=0.0)
    min_learning_rate: float = _value(1.0e-6, low=0.0)
    warmup_steps: int = _value(0, low=0)
    weight_decay: float = _value(0.1, low=0.0)
    adam_beta1: float = _value(0.9, low=0.0, high=0.9999)
    adam_beta2: float = _value(0.95, low=0.0, high=0.9999999)
    clip_grad: float = _value(1.0, above=0.0)
    #: ``auto`` is bf16 where the hardware computes in it, else fp32.
    precision: str = _value("auto", choices=("auto", "fp32", "bf16", "fp16"))
    seed: int = _value(1234, low=0)
    #: The share of documents, at the end of the corpus, that is never trained on.
    validation_fraction: float = _value(0.05, low=0.0, high=0.5)
    eval_interval: int = _value(100, low=1)
    save_interval: int = _value(1000, low=1)
    #: Checkpoints kept; older ones of the same run are removed.
    keep_checkpoints: int = _value(2, low=1)
    log_interval: int = _value(10, low=1)


@dataclass
class FinetuneConfig:
    """Step 4."""

    engine: str = _value("trl", choices=("trl",))
    #: Instruction data: a JSONL file (``text``, ``messages`` or ``prompt``/``completion``), or ``corpus`` for the
    #: pairs that :mod:`pipeline.instructions` builds from the recipe's own text.
    data: str = _value("corpus")
    epochs: float = _value(2.0, above=0.0)
    learning_rate: float = _value(2.0e-5, above=0.0)
    warmup_ratio: float = _value(0.1, low=0.0, high=1.0)
    micro_batch_size: int = _value(8, low=1)
    gradient_accumulation_steps: int = _value(1, low=1)
    #: Tokens a conversation; longer ones are cut. 0 takes the model's number of positions.
    max_seq_length: int = _value(0, low=0)
    validation_fraction: float = _value(0.1, low=0.0, high=0.5)
    seed: int = _value(1234, low=0)


@dataclass
class UploadConfig:
    """Steps 3-2 and 5. Without a repository the folder is made and checked, and nothing leaves the machine."""

    pretrained_repo: str = _value("")
    finetuned_repo: str = _value("")
    #: The seed's ``--test_prompt_text``.
    prompt: str = _value("Once upon a time,")
    #: SPDX id or Hub licence name for the model card; empty takes the dataset's, else ``other``.
    license: str = _value("")
    private: bool = _value(True)


@dataclass
class Config:
    """A whole run: every table of a recipe, complete and valid."""

    name: str = "custom"
    description: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    upload: UploadConfig = field(default_factory=UploadConfig)


def section(config: Config, name: str) -> dict[str, Any]:
    """One table of ``config`` as plain JSON values."""
    return dataclasses.asdict(getattr(config, name))


def recipe_names() -> list[str]:
    """The recipes that come with ucllm."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.toml") if path.stem != "datasets")


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises :class:`UcllmError` when it is missing, unreadable or not TOML."""
    # Only the tool reads TOML, on Python 3.10 or newer; stage processes get JSON.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UcllmError(
            "recipe.unreadable", _("Cannot read {path}.").format(path=path), str(error.strerror)
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UcllmError("recipe.not-toml", _("{path} is not TOML.").format(path=path), str(error)) from error
    return document


def resolve(recipe: str, settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> Config:
    """Build the configuration of a run.

    ``recipe`` is a name that comes with ucllm, the path of a TOML file, or empty for the defaults; ``settings`` are
    ``a.b=c`` texts of ``--set``; ``overrides`` maps ``a.b`` to a value already typed, and wins. Raises
    :class:`UcllmError` with every problem found.
    """
    problems: list[Problem] = []
    path = Path("custom.toml")
    document: dict[str, Any] = {}
    try:
        path = _recipe_path(recipe) if recipe else path
        document = load_toml(path) if recipe else document
    except UcllmError as error:
        problems += error.problems  # and go on: what --set says may be wrong as well
    readable = not problems
    config = Config(name=_name(document, path, problems), description=str(document.pop("description", "")))
    for table, values in document.items():
        if table not in _tables():
            problems.append(_unknown(table, _tables(), str(path)))
            continue
        if not isinstance(values, dict):
            what = _("`{key}` in {where} must be a table: [{key}].").format(key=table, where=path)
            problems.append(Problem("config.invalid-value", what))
            continue
        for key, value in values.items():
            _assign(config, f"{table}.{key}", value, str(path), problems)
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator:
            problems.append(
                Problem(
                    "config.syntax",
                    _("`--set {text}` has no `=`.").format(text=text),
                    hint=_("Write `--set pretrain.steps=100`."),
                )
            )
            continue
        _assign(config, key.strip(), value, "--set", problems)
    for key, value in (overrides or {}).items():
        _assign(config, key, value, _("the command line"), problems)
    if readable:
        problems += _cross_checks(config)
    if problems:
        raise UcllmError.of(problems)
    return config


def _name(document: dict[str, Any], path: Path, problems: list[Problem]) -> str:
    """The recipe's name: its own, else its file's. It names the folder of its runs, so it must be a plain one."""
    name = document.pop("name", path.stem)
    if isinstance(name, str) and name and name not in (".", "..") and not set(name) & set("/\0"):
        return name
    what = _("`name` in {where} must be the name of a folder.").format(where=path)
    problems.append(Problem("config.invalid-value", what))
    return "custom"


def _recipe_path(recipe: str) -> Path:
    if recipe in recipe_names():
        return RECIPES_DIR / f"{recipe}.toml"
    path = Path(recipe)
    if path.suffix == ".toml" or path.is_file():
        return path
    raise UcllmError(
        "recipe.unknown",
        _("There is no recipe `{name}`.").format(name=recipe),
        hint=did_you_mean(recipe, recipe_names()),
    )


def _tables() -> list[str]:
    return [item.name for item in dataclasses.fields(Config) if item.name not in ("name", "description")]


def _unknown(key: str, known: Sequence[str], where: str) -> Problem:
    what = _("Unknown key `{key}` in {where}.").format(key=key, where=where)
    return Problem("config.unknown-key", what, hint=did_you_mean(key, known))


def _assign(config: Config, key: str, value: Any, where: str, problems: list[Problem]) -> None:
    table, _dot, name = key.partition(".")
    if table not in _tables() or not name:
        every = [f"{item}.{each.name}" for item in _tables() for each in dataclasses.fields(getattr(config, item))]
        if table in _tables():
            every = [item for item in every if item.startswith(f"{table}.")]
            what = _("`{key}` in {where} is a table; say which of its values.").format(key=key, where=where)
            known = _("Known: {names}").format(names=", ".join(every))
            problems.append(Problem("config.unknown-key", what, hint=known))
            return
        problems.append(_unknown(key, every if name else _tables(), where))
        return
    target = getattr(config, table)
    fields = {item.name: item for item in dataclasses.fields(target)}
    if name not in fields:
        problems.append(_unknown(key, [f"{table}.{each}" for each in fields], where))
        return
    kind = type(getattr(target, name))
    try:
        typed = _convert(value, kind)
        problem = _limits(fields[name].metadata, typed)
    except (TypeError, ValueError):
        problem = _("it must be {kind}").format(kind=_(_KINDS[kind]))
    if problem:
        what = _("`{key}={value}` in {where} is not possible: {problem}.").format(
            key=key, value=value, where=where, problem=problem
        )
        problems.append(Problem("config.invalid-value", what))
        return
    setattr(target, name, typed)


_KINDS = {
    bool: N_("true or false"),
    int: N_("a whole number"),
    float: N_("a number"),
    str: N_("a text"),
    list: N_("a list of texts"),
}


def _convert(value: Any, kind: type) -> Any:
    """``value`` as ``kind``: TOML values must already have it, texts of ``--set`` are read as it."""
    if kind is list:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise TypeError(value)
        return items
    if isinstance(value, bool) or kind is bool:
        if isinstance(value, str):
            value = {"true": True, "false": False}[value.lower()] if value.lower() in ("true", "false") else value
        if not isinstance(value, bool) or kind is not bool:
            raise TypeError(value)
        return value
    if kind is str:
        if not isinstance(value, str):
            raise TypeError(value)
        return value
    if isinstance(value, str):
        return kind(value.replace("_", ""))
    if isinstance(value, int) or (kind is float and isinstance(value, float)):
        return kind(value)
    raise TypeError(value)


def _limits(limits: Mapping[str, Any], value: Any) -> str:
    """Why ``value`` is outside ``limits``; empty when it is not."""
    if isinstance(value, float) and not math.isfinite(value):
        return _("it must be a finite number")
    if limits["choices"] is not None and value not in limits["choices"]:
        return _("it must be one of {choices}").format(choices=", ".join(limits["choices"]))
    if limits["low"] is not None and not value >= limits["low"]:
        return _("it must be at least {limit}").format(limit=limits["low"])
    if limits["above"] is not None and not value > limits["above"]:
        return _("it must be more than {limit}").format(limit=limits["above"])
    if limits["high"] is not None and not value <= limits["high"]:
        return _("it must be at most {limit}").format(limit=limits["high"])
    return ""


def _cross_checks(config: Config) -> list[Problem]:
    """Problems that lie between two values."""
    found: list[tuple[str, str]] = []
    model, pretrain, finetune = config.model, config.pretrain, config.finetune
    if model.hidden_size % model.heads:
        found.append(
            (
                _("model.hidden_size {size} is not divisible by model.heads {heads}.").format(
                    size=model.hidden_size, heads=model.heads
                ),
                "",
            )
        )
    if pretrain.global_batch_size % pretrain.micro_batch_size:
        found.append(
            (
                _("pretrain.global_batch_size {total} is not divisible by pretrain.micro_batch_size {micro}.").format(
                    total=pretrain.global_batch_size, micro=pretrain.micro_batch_size
                ),
                "",
            )
        )
    if pretrain.warmup_steps > pretrain.steps:
        found.append(
            (
                _("pretrain.warmup_steps {warmup} is more than pretrain.steps {steps}.").format(
                    warmup=pretrain.warmup_steps, steps=pretrain.steps
                ),
                "",
            )
        )
    if pretrain.min_learning_rate > pretrain.learning_rate:
        found.append((_("pretrain.min_learning_rate is more than pretrain.learning_rate."), ""))
    if finetune.max_seq_length > pretrain.seq_length:
        found.append(
            (
                _("finetune.max_seq_length {length} is longer than the model: pretrain.seq_length is {limit}.").format(
                    length=finetune.max_seq_length, limit=pretrain.seq_length
                ),
                _("Use `--set finetune.max_seq_length=0` for the model's own length."),
            )
        )
    return [Problem("config.contradiction", what, hint=hint) for what, hint in found]


def padded_vocab_size(vocab_size: int, multiple: int = 128) -> int:
    """The vocabulary as Megatron pads it.

    Megatron's SentencePiece wrapper adds <PAD>, <BOS> and <EOS> (three ids) before padding to a multiple of 128 times
    the tensor-parallel size (``megatron/tokenizer/tokenizer.py``): 2000 becomes 2048.
    """
    return -(-(vocab_size + 3) // multiple) * multiple


def datasets() -> dict[str, dict[str, Any]]:
    """The catalogue ``recipes/datasets.toml``: name to source, sha256, licence."""
    return load_toml(RECIPES_DIR / "datasets.toml")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
