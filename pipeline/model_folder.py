"""A model folder in Hugging Face's form: whether it is one, whether its weights are whole, and a clean copy of it."""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _

CARD = "README.md"
#: What every upload holds besides the weights.
COMPLETE = (
    CARD, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
#: What of a model folder travels. Never a checkpoint's rest: optimizer states are large, ``training_args.bin`` is a
#: pickle that holds the paths of the machine.
_TRAVELS = (
    *COMPLETE[1:], "*.safetensors", "model.safetensors.index.json", "*.model", "chat_template.jinja",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "LICENSE*",
)  # fmt: skip
#: Where libraries note the folder that something was loaded from.
_PATH_KEYS = ("_name_or_path", "name_or_path")


def check_folder(model: Path) -> None:
    """Raises :class:`UcllmError` unless ``model`` is a folder with a configuration, weights and a tokenizer."""
    problems = []
    if not model.is_dir():
        problems.append(_("{path} is not a folder.").format(path=model))
    else:
        if not (model / "config.json").is_file():
            problems.append(_("{path} has no config.json.").format(path=model))
        if not any(any(model.glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*.bin")):
            text = _("{path} has no weights: neither model.safetensors nor pytorch_model.bin.")
            problems.append(text.format(path=model))
        if not any(any(model.glob(pattern)) for pattern in ("tokenizer*", "*.model", "vocab.*")):
            problems.append(_("{path} has no tokenizer.").format(path=model))
    if problems:
        hint = _("Name a model folder in Hugging Face's form: `--input MODEL_DIR`.")
        raise UcllmError.of([Problem("upload.not-a-model", text, hint=hint) for text in problems])


def check_weights(folder: Path) -> None:
    """Raises :class:`UcllmError` when a safetensors file is cut short, is not one, or is missing a part."""
    from safetensors import SafetensorError, safe_open

    names = {"model.safetensors"} if (folder / "model.safetensors").is_file() else set()
    index = folder / "model.safetensors.index.json"
    if not names and index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    for name in sorted(names):
        try:
            with safe_open(folder / name, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise UcllmError(
                "weights.damaged",
                _("{path} is damaged.").format(path=folder / name),
                str(error),
                _("Copy it again from where it came from, or make it again: `ucllm train pretrain --force`."),
            ) from error


def copy_model(model: Path, folder: Path) -> None:
    """Copy what travels, without the paths that libraries note."""
    folder.mkdir(parents=True)
    for pattern in _TRAVELS:
        for path in sorted(model.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    hide_paths(folder, model)


def hide_paths(folder: Path, model: Path) -> None:
    """Take the places that libraries noted out of the configuration. Raises :class:`UcllmError` for damaged JSON."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            why = str(error)
            raise UcllmError("upload.not-a-model", _("{path} is damaged.").format(path=model / name), why) from error
        if any(content.pop(key, None) is not None for key in _PATH_KEYS):
            write_json(path, content)


def complete(folder: Path, model: Path) -> None:
    """Make what a model of another origin may lack: safetensors, generation and special-token files.

    Raises :class:`UcllmError` when ``model`` cannot be loaded.
    """
    weights = any(folder.glob("model*.safetensors"))
    if weights and all((folder / name).is_file() for name in COMPLETE[1:]):
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    made = folder.with_name(f"{folder.name}.made")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        tokenizer.save_pretrained(made)
        write_json(made / "special_tokens_map.json", tokenizer.special_tokens_map)
        if not weights:
            # A pickle is read for its tensors only: transformers passes weights_only to torch.
            loaded = AutoModelForCausalLM.from_pretrained(model, local_files_only=True)
            loaded.save_pretrained(made, max_shard_size="50GB")
        elif not (folder / "generation_config.json").is_file():
            from transformers import AutoConfig

            shape = AutoConfig.from_pretrained(model, local_files_only=True)
            GenerationConfig.from_model_config(shape).save_pretrained(made)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        why = str(error).split("\n", maxsplit=1)[0]
        raise UcllmError("upload.not-a-model", _("{path} cannot be loaded.").format(path=model), why) from error
    for path in sorted(made.iterdir()):
        if not (folder / path.name).exists():
            shutil.move(str(path), folder / path.name)
    shutil.rmtree(made)
    hide_paths(folder, model)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as the libraries do: two blanks, one line feed at the end."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def count_parameters(folder: Path) -> int:
    """The number of weights stored in ``folder``, shared ones once."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="numpy") as tensors:
            total += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  not a dict
    return total
