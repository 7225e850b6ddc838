"""Read what ``torch.save`` wrote without trusting it: only what is listed here is made or called.

A pickle is a program. Megatron-DeepSpeed's ``mp_rank_*_model_states.pt`` hold the run's arguments and random states
beside tensors, so torch's own ``weights_only`` refuses them, and loading them the plain way would run whatever a
downloaded file asks for.
"""

from __future__ import annotations

import argparse
import collections
import enum
import importlib
import inspect
import pickle
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.errors import UcllmError
from pipeline.i18n import _


class _ModelType(enum.Enum):
    """What ``megatron/core/enums.py`` calls ModelType, for machines without Megatron."""

    encoder_or_decoder = 1
    encoder_and_decoder = 2
    retro_encoder = 3
    retro_decoder = 4


def _member(kind: object, name: object) -> _ModelType:
    """``getattr`` as some versions of Python 3.11 pickle an enum's member; of nothing else."""
    if kind is not _ModelType or not isinstance(name, str) or name not in _ModelType.__members__:
        raise Refused("builtins.getattr")
    return _ModelType[name]


def _encode(text: str, encoding: str) -> bytes:
    """How a numpy array's bytes travel in the protocol that torch uses: as text. No other codec is looked up."""
    if encoding != "latin1":
        raise Refused(f"_codecs.encode({encoding})")
    return text.encode("latin1")


class _Namespace(argparse.Namespace):
    """A run's arguments. A class of our own: a pickle can set attributes of the classes it names."""


class Refused(pickle.UnpicklingError):
    """The file asks for something that is not on the list. ``args[0]`` is its name."""


@lru_cache(maxsize=1)
def _allowed() -> Mapping[tuple[str, str], Any]:
    """(module, name) to what stands for it: data types, and the functions that put tensors and arrays together."""
    import torch

    known: dict[tuple[str, str], Any] = {
        ("argparse", "Namespace"): _Namespace,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("megatron.core.enums", "ModelType"): _ModelType,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
        # torch itself resolves the storages that have a type.
        ("torch", "UntypedStorage"): torch.UntypedStorage,
        ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
        ("torch", "device"): torch.device,
        ("torch", "Size"): torch.Size,
        ("_codecs", "encode"): _encode,
    }
    for module in ("builtins", "__builtin__"):  # their name in protocol 2
        known[module, "set"], known[module, "getattr"] = set, _member
    known.update({("torch", name): each for name, each in vars(torch).items() if isinstance(each, torch.dtype)})
    known.update(_numpy())
    return known


def _numpy() -> Mapping[tuple[str, str], Any]:
    import numpy

    found: dict[tuple[str, str], Any] = {("numpy", "ndarray"): numpy.ndarray, ("numpy", "dtype"): numpy.dtype}
    # numpy 2 renamed the module, and a file may come from either side.
    names = ("numpy._core.multiarray", "numpy.core.multiarray")
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for each in names:
            found[each, "_reconstruct"], found[each, "scalar"] = module._reconstruct, module.scalar
        break
    return found


class _Unpickler(pickle.Unpickler):
    """Finds what is allowed, under exactly its name: no attribute of it, and nothing imported on the way."""

    def find_class(self, module: str, name: str) -> Any:
        found = _allowed().get((module, name))
        if found is None:
            raise Refused(f"{module}.{name}")
        return found


def load(path: Path) -> Any:
    """What ``torch.save`` wrote to ``path``, tensors on the CPU and read only when they are used (torch 2.1 and newer).

    Raises :class:`UcllmError`: ``checkpoint.damaged`` for a file that is cut short or not torch's,
    ``checkpoint.unsafe`` for one that asks for anything but data.
    """
    import torch

    check_archive(path)
    # torch derives its own unpickler from this one, which then resolves the storages.
    only = SimpleNamespace(Unpickler=_Unpickler, load=_never, __name__="pipeline.safe_pickle")
    try:
        return torch.load(str(path), map_location="cpu", pickle_module=only, weights_only=False, **mapped())
    except Refused as error:
        raise UcllmError(
            "checkpoint.unsafe",
            _("{path} is not loaded: it asks for {name}.").format(path=path, name=error.args[0]),
            _("A checkpoint holds data. Whatever else a file of this kind names would run as a program of yours."),
            _("Do not load this file with other tools. If you made it yourself, report what it asks for."),
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise damaged(path, str(error)) from error
    except pickle.UnpicklingError as error:
        raise damaged(path, str(error)) from error


def load_tensors(path: Path) -> Mapping[str, Any]:
    """A file that holds nothing but named tensors, on the CPU, by torch's own ``weights_only``.

    Raises :class:`UcllmError` ``checkpoint.damaged`` for any other file.
    """
    import torch

    check_archive(path)
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True, **mapped())
    except (RuntimeError, ValueError, EOFError, OSError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise damaged(path, str(error)) from error
    except pickle.UnpicklingError as error:
        raise damaged(path, str(error)) from error
    if not isinstance(content, Mapping) or not all(isinstance(each, torch.Tensor) for each in content.values()):
        raise damaged(path, _("It holds something else than tensors."))
    return content


def _never(*_arguments: object, **_options: object) -> Any:
    """In place of ``pickle.load``, which torch calls only for files of before version 1.6."""
    raise Refused("pickle.load")


def mapped() -> Mapping[str, Any]:
    """The option of ``torch.load`` that reads a tensor's bytes only when they are needed, where it exists (2.1)."""
    import torch

    return {"mmap": True} if "mmap" in inspect.signature(torch.load).parameters else {}


def check_archive(path: Path) -> None:
    """Raises :class:`UcllmError` unless ``path`` is a whole archive as ``torch.save`` writes it since version 1.6.

    Its table of contents lies at its end: a file that was cut short has none. TorchScript's archives are programs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise damaged(path, _("It is cut short, or was never written by torch.save.")) from error
    tops = {name.partition("/")[2] for name in names}
    if "data.pkl" not in tops or "constants.pkl" in tops:
        raise damaged(path, _("It is an archive, but not one of torch.save."))


def damaged(path: Path, why: str) -> UcllmError:
    """The error for a file of a checkpoint that cannot be read."""
    return UcllmError(
        "checkpoint.damaged",
        _("{path} is damaged.").format(path=path),
        why.strip().split("\n", maxsplit=1)[0],
        _("Copy it again from where it came from, or name an earlier checkpoint: `--input DIR/global_stepN`."),
    )
