"""Recipes: reading them, and resolving them with ``--set`` and options into one valid configuration.

Values come, later over earlier, from the defaults in :mod:`pipeline.config`, the recipe, ``--set a.b=c``, and the
options of the command. Every problem is found before anything starts, all at once.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config, steps
from pipeline.errors import Problem, UcllmError, did_you_mean
from pipeline.i18n import N_, _

RECIPES_DIR = Path(__file__).parent / "recipes"


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
        words = fields[name].metadata["words"]
        typed = words[value] if isinstance(value, str) and value in words else _convert(value, kind)
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
        text = _("model.hidden_size {size} is not divisible by model.heads {heads}.")
        found.append((text.format(size=model.hidden_size, heads=model.heads), ""))
    if pretrain.micro_batch_size and pretrain.global_batch_size % pretrain.micro_batch_size:
        text = _("pretrain.global_batch_size {total} is not divisible by pretrain.micro_batch_size {micro}.")
        found.append((text.format(total=pretrain.global_batch_size, micro=pretrain.micro_batch_size), ""))
    if pretrain.warmup_steps > steps(config):
        text = _("pretrain.warmup_steps {warmup} is more than pretrain.steps {steps}.")
        found.append((text.format(warmup=pretrain.warmup_steps, steps=steps(config)), ""))
    if pretrain.min_learning_rate > pretrain.learning_rate:
        found.append((_("pretrain.min_learning_rate is more than pretrain.learning_rate."), ""))
    if finetune.max_seq_length > pretrain.seq_length:
        text = _("finetune.max_seq_length {length} is longer than the model: pretrain.seq_length is {limit}.")
        what = text.format(length=finetune.max_seq_length, limit=pretrain.seq_length)
        found.append((what, _("Use `--set finetune.max_seq_length=0` for the model's own length.")))
    return [Problem("config.contradiction", what, hint=hint) for what, hint in found]


def datasets() -> dict[str, dict[str, Any]]:
    """The catalogue ``recipes/datasets.toml``: name to source, sha256, licence."""
    return load_toml(RECIPES_DIR / "datasets.toml")
