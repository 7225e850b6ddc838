"""The model that fine-tuning starts from: a folder, or a name on the Hub; and the folder that comes out of it."""

from __future__ import annotations

import functools
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import hub
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.model_folder import check_folder, check_weights, write_json
from pipeline.provenance import check_unaltered

#: ``NAME`` or ``OWNER/NAME``, perhaps with ``@REVISION`` (a branch, a tag or a commit).
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?", re.ASCII)
#: What is fetched from the Hub: no copy of the weights in another format.
_FETCHED = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "model*.safetensors")
#: What makes the tokenizer; copied as it is, because saving one anew may change how it reads texts.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "LICENSE*",
)  # fmt: skip


def on_hub(name: str) -> bool:
    """Whether ``--input`` means the Hub: it could be a name there, and nothing of that name is here."""
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).expanduser().exists()


@dataclass
class BaseModel:
    """A causal language model in fp32 with its tokenizer. ``commit`` is the Hub's id of what was fetched, or empty."""

    folder: Path
    model: Any
    tokenizer: Any
    commit: str = ""

    @property
    def positions(self) -> int | None:
        """The most tokens the model can read; ``None`` when its configuration sets no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)


def load_folder(folder: Path) -> BaseModel:
    """Load a model folder.

    Raises :class:`UcllmError` when it is not one, is damaged, or was altered since its stage made it.
    """
    check_folder(folder)
    check_weights(folder)
    check_unaltered(folder)
    return _load(folder)


def load_from_hub(name: str, note: hub.Note) -> BaseModel:
    """Fetch ``OWNER/NAME[@REVISION]`` (``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` are honoured) and load it.

    Raises :class:`UcllmError` when it is not there, may not be read, cannot be reached, or is no such model.
    """
    hub.prepare()
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    repo, _at, revision = name.partition("@")

    def fetch(*patterns: str) -> Path:
        call = functools.partial(snapshot_download, repo, revision=revision or None, allow_patterns=list(patterns))
        try:
            # Offline there is only the cache, and nothing to wait for.
            return Path(call() if constants.HF_HUB_OFFLINE else hub.retried(call, repo, note))
        except LocalEntryNotFoundError as error:
            raise _not_fetched(name, error) from error
        except UcllmError as error:
            raise _not_fetched(name, error.__cause__ or error) from error

    folder = fetch(*_FETCHED)
    if not any(folder.glob("model*.safetensors")):
        folder = fetch("pytorch_model*.bin", *_FETCHED)
    check_folder(folder)
    check_weights(folder)
    base = _load(folder)
    base.commit = folder.name
    return base


def _not_fetched(name: str, cause: BaseException) -> UcllmError:
    """The failure of a download in words of its own: :func:`pipeline.hub.explain` speaks of uploads."""
    from huggingface_hub.utils import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(cause, OSError) and cause.errno is not None:
        raise cause  # the disk: pipeline.child says so
    if isinstance(cause, (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)):
        return UcllmError(
            "base.not-found",
            _("There is no model {name}.").format(name=name),
            _("It is neither a folder here nor a model on the Hub that you may read."),
            _("Check the name; for a private or gated model log in first: `hf auth login`."),
        )
    why = _first_line(cause)
    if isinstance(cause, LocalEntryNotFoundError):
        why = _("The Hub could not be reached, and the model is not in the cache.")
    return UcllmError(
        "base.not-fetched",
        _("{name} could not be fetched from the Hub.").format(name=name),
        why,
        _("Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, then run the same command again."),
    )


def _load(folder: Path) -> BaseModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, info = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise _unusable(folder, _first_line(error)) from error
    if info["missing_keys"]:
        names = ", ".join(sorted(map(str, info["missing_keys"]))[:5])
        raise _unusable(folder, _("Weights are missing: {names}.").format(names=names))
    if tokenizer.eos_token_id is None:
        raise _unusable(folder, _("Its tokenizer has no end-of-text symbol, so that no answer could end."))
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        why = _("Its tokenizer has {count} tokens, and the model {rows} rows for them.")
        raise _unusable(folder, why.format(count=len(tokenizer), rows=rows))
    return BaseModel(folder, model.float(), tokenizer)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _unusable(folder: Path, why: str) -> UcllmError:
    hint = _("Name a causal language model in Hugging Face's form, such as `ucllm train convert` makes.")
    return UcllmError("base.unusable", _("The model in {path} cannot be fine-tuned.").format(path=folder), why, hint)


def describe_ids(model: Any, tokenizer: Any) -> None:
    """Say in the model's configurations which ids begin, end and pad a text: the tokenizer's.

    The generation settings of the base model go, but for tokens it must never choose: they were made for another use,
    and transformers refuses to save some that are published.
    """
    from transformers import GenerationConfig

    eos = tokenizer.eos_token_id
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": eos, "pad_token_id": pad}
    for key, value in special.items():
        setattr(model.config, key, value)
    suppressed = getattr(model.generation_config, "suppress_tokens", None)
    model.generation_config = GenerationConfig(**special, **({"suppress_tokens": suppressed} if suppressed else {}))


def write_folder(base: BaseModel, output: Path) -> None:
    """Write the model as it is now, with the tokenizer it came with and the chat template set on ``base.tokenizer``."""
    base.model.save_pretrained(output, max_shard_size="50GB")
    for pattern in _TOKENIZER_FILES:
        for path in sorted(base.folder.glob(pattern)):
            shutil.copyfile(path, output / path.name)
    config = output / "tokenizer_config.json"
    if config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        if content.pop("chat_template", None) is not None:  # older folders hold it here
            write_json(config, content)
    (output / "chat_template.jinja").write_text(base.tokenizer.chat_template, encoding="utf-8")
