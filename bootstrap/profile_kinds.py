"""What is wrong with a ``profile.toml``, all of it at once, so that nobody mends it one run at a time."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.i18n import _

#: How an environment comes to be (``[python] kind``); :mod:`bootstrap.requirements.env_python` has a way for each.
ENV_KINDS = ("venv", "conda", "adopt")
#: What every profile says, and as what.
_KEYS: Mapping[str, Any] = {
    "description": str,
    "recipe": str,
    "engines": Mapping[str, str],
    "requirements": tuple[str, ...],
    "python": dict,
}
#: What a profile may say beside that and its tables.
_MORE: Mapping[str, Any] = {"optional": tuple[str, ...], "packages": dict}
_PACKAGES: Mapping[str, Any] = {"locks": tuple[str, ...], "requirements": tuple[str, ...], "sizes": Mapping[str, float]}
#: The requirement that builds from a lock of its own, by the table that asks for it.
_SDISTS = {"deepspeed": ("ops.deepspeed", "deepspeed.lock"), "flash_attention": ("ops.flash-attn", "flash-attn.lock")}


def wrong(
    data: Mapping[str, Any], folder: Path, tables: Mapping[str, Callable[..., object]], each: Mapping[str, type]
) -> list[str]:
    """What is not as a profile has it. ``tables`` are the dataclasses of its tables, ``each`` of tables of tables."""
    found = [_("{key} is missing").format(key=key) for key in _KEYS if key not in data]
    for key, kind in {**_KEYS, **_MORE, **dict.fromkeys((*tables, *each), dict)}.items():
        if key in data and not _fits(data[key], kind):
            found.append(_other_kind(key, data[key]))
    plain = {key: value for key, value in data.items() if isinstance(value, dict)}
    for name, table in tables.items():
        found += _of_table(name, plain.get(name), table)
    for name, table in each.items():
        for key, value in plain.get(name, {}).items():
            found += _of_table(f"{name}.{key}", value, table)
    for key, kind in _PACKAGES.items():
        value = plain.get("packages", {}).get(key)
        if value is not None and not _fits(value, kind):
            found.append(_other_kind(f"packages.{key}", value))
    glibc = plain.get("machine", {}).get("glibc")
    if isinstance(glibc, str) and not re.fullmatch(r"\d+\.\d+", glibc):
        found.append(_other_kind("machine.glibc", glibc))
    return [*found, *_of_python(plain), *_of_requirements(data), *_of_locks(data, plain, folder)]


def _other_kind(key: str, value: object) -> str:
    return _("{key}: {value} is of another kind").format(key=key, value=repr(value))


def _fits(value: object, kind: Any) -> bool:
    """Whether a value of TOML is of this annotated kind."""
    if kind is float:
        return type(value) in (int, float)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is None:
        return type(value) is kind
    return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())


def _of_table(name: str, value: object, table: Any) -> Iterator[str]:
    """What is wrong with a table, which is to become this dataclass; nothing about one that is not there."""
    if value is None:
        return
    if not isinstance(value, dict):
        yield _other_kind(name, value)
        return
    hints = typing.get_type_hints(table)
    for key, item in value.items():
        if key not in hints:
            yield _("{key} is not known").format(key=f"{name}.{key}")
        elif not _fits(item, hints[key]):
            yield _other_kind(f"{name}.{key}", item)
    for one in dataclasses.fields(table):
        needed = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if needed and one.name not in value:
            yield _("{key} is missing").format(key=f"{name}.{one.name}")


def _of_python(plain: Mapping[str, Any]) -> Iterator[str]:
    if "python" not in plain:
        return
    versions, kind = plain["python"].get("versions"), plain["python"].get("kind", ENV_KINDS[0])
    if not versions or not _fits(versions, tuple[str, ...]) or not all(re.fullmatch(r"3\.\d+", v) for v in versions):
        yield _other_kind("python.versions", versions)
    if kind not in ENV_KINDS:
        known = _("python.kind: {value} is not one of {known}")
        yield known.format(value=repr(kind), known=", ".join(ENV_KINDS))


def _of_requirements(data: Mapping[str, Any]) -> Iterator[str]:
    if data.get("requirements") == []:
        yield _("{key} is missing").format(key="requirements")
    here = Path(__file__).parent / "requirements"
    for key in ("requirements", "optional"):
        items = data.get(key, [])
        if not _fits(items, tuple[str, ...]):
            continue  # that was said
        for item in dict.fromkeys(items):
            named = re.fullmatch(r"[a-z]+\.[a-z0-9-]+", item)
            if not named or not (here / f"{item.replace('.', '_').replace('-', '_')}.py").is_file():
                yield _("there is no requirement {name}").format(name=repr(item))
            if items.count(item) > 1:
                yield _("{key}: {name} stands there more than once").format(key=key, name=item)


def _of_locks(data: Mapping[str, Any], plain: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """The lock files that a step would look for and that are not there."""
    torch, listed = plain.get("torch", {}), data.get("requirements")
    locks, requirements = plain.get("packages", {}).get("locks", []), listed if isinstance(listed, list) else []
    named = [*(locks if isinstance(locks, list) else []), torch.get("lock"), torch.get("default_lock")]
    named += [lock for table, (item, lock) in _SDISTS.items() if table in plain and item in requirements]
    for lock in dict.fromkeys(item for item in named if item and isinstance(item, str)):
        if not (folder / lock).is_file():
            yield _("there is no file {name}").format(name=folder / lock)
