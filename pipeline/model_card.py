"""The model card of an upload: YAML metadata for the Hub and a page for its reader.

The page is English whatever the user speaks, because it is read on the Hub. It holds no date and no path, so that the
same model gives the same card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.i18n import _

#: What a card must say (the Hub asks for the licence, the library and the task to show a model properly).
REQUIRED = ("license", "library_name", "pipeline_tag")
#: Settings of the training that a reader wants to see; the rest is in ``training_manifest.json``.
_SETTINGS = {
    "pretrain": (
        "steps", "seq_length", "global_batch_size", "learning_rate", "min_learning_rate", "warmup_steps",
        "weight_decay", "precision", "seed",
    ),
    "finetune": (
        "epochs", "learning_rate", "micro_batch_size", "gradient_accumulation_steps", "max_seq_length", "seed",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CardFacts:
    """What a card tells. ``stages`` are public manifests (:func:`pipeline.provenance.public`), the first stage first.

    ``dataset`` is an entry of ``recipes/datasets.toml`` with its ``name``; empty when the text is the user's own.
    ``base_model`` is a Hub id, empty where none is known. ``shape`` is the content of ``config.json``.
    """

    title: str
    repo: str
    chat: bool
    license: str
    base_model: str
    prompt: str
    sample: str
    parameters: int
    shape: Mapping[str, Any]
    dataset: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[Mapping[str, Any]] = ()

    @property
    def finetuned(self) -> bool:
        """Whether the last training was a fine-tuning."""
        return self.chat or any(stage["stage"] == "finetune" for stage in self.stages)


def metadata(facts: CardFacts) -> dict[str, Any]:
    """The YAML block, in the order it is written; keys without a value are left out."""
    license_id = (facts.license or str(facts.dataset.get("license", "")) or "other").lower()
    own_license = license_id == "other" and not facts.license
    values = {
        "language": facts.dataset.get("language"),
        "license": license_id,
        "license_name": facts.dataset.get("license_name") if own_license else None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ucllm", str(facts.shape.get("model_type", "gpt2")), "sft" if facts.finetuned else "pretrained"],
        "datasets": [facts.dataset["name"]] if facts.dataset else None,
        "base_model": facts.base_model or None,
    }
    return {key: value for key, value in values.items() if value}


def model_card(facts: CardFacts) -> str:
    """The content of ``README.md``."""
    from huggingface_hub import ModelCardData

    block = ModelCardData(**metadata(facts)).to_yaml()
    sections = [
        f"---\n{block}\n---\n\n# {facts.title}",
        _summary(facts),
        "## How to use it\n\n" + _fenced(_snippet(facts), "python"),
        "## What it writes\n\nGreedy decoding, the prompt included:\n\n" + _fenced(facts.sample, "text"),
        _data(facts),
        _training(facts),
        _evaluation(facts),
        "## Limits\n\nThe model is not aligned and was not tested for safety: it writes what is likely after its"
        " training text, which may be wrong, biased or offensive. A small model on little text repeats itself.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(facts: CardFacts) -> str:
    shape = facts.shape
    names = {"n_layer": "layers", "n_embd": "hidden units", "n_head": "heads", "n_positions": "positions"}
    sizes = [f"{shape[key]} {name}" for key, name in names.items() if key in shape]
    kind = "a chat model" if facts.finetuned else "a base model"
    size = f" ({', '.join(sizes)})" if sizes else ""
    text = (
        f"This is {kind}: a causal language model of type `{shape.get('model_type', 'unknown')}`"
        f" with {facts.parameters:,} parameters{size}."
    )
    if facts.base_model:
        text += f" It was fine-tuned from [{facts.base_model}](https://huggingface.co/{facts.base_model})."
    if facts.stages:
        text += " It was made with `ucllm`."
    return text


def _snippet(facts: CardFacts) -> str:
    name = facts.repo or "PATH_OF_THIS_FOLDER"
    load = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})\n"
        f"model = AutoModelForCausalLM.from_pretrained({name!r})\n"
    )
    if facts.chat:
        load += (
            f"turns = [{{'role': 'user', 'content': {facts.prompt!r}}}]\n"
            "text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)\n"
            "inputs = tokenizer(text, add_special_tokens=False, return_tensors='pt')\n"
        )
    else:
        load += f"inputs = tokenizer({facts.prompt!r}, return_tensors='pt')\n"
    return load + "output = model.generate(**inputs, max_new_tokens=40)\nprint(tokenizer.decode(output[0]))"


def _fenced(text: str, language: str) -> str:
    """``text`` as a code block that nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _data(facts: CardFacts) -> str:
    if not facts.dataset:
        return ""
    home = facts.dataset.get("homepage")
    name = facts.dataset.get("title", facts.dataset["name"])
    title = f"[{name}]({home})" if home else str(name)
    return f"## Training data\n\n{title}; licence: {facts.dataset.get('license_name') or facts.dataset.get('license')}."


def _training(facts: CardFacts) -> str:
    rows = [(stage["stage"], key, value) for stage in facts.stages for key, value in _settings(stage)]
    if not rows:
        return ""
    note = "Everything that decided the result, with sha256 of each input and output: `training_manifest.json`."
    return f"## Training\n\n{_table(('stage', 'setting', 'value'), rows)}\n\n{note}"


def _settings(stage: Mapping[str, Any]) -> list[tuple[str, Any]]:
    wanted = _SETTINGS.get(stage["stage"], ())
    config = stage["config"]
    tables = [config, *(value for value in config.values() if isinstance(value, dict))]
    known: dict[str, Any] = {key: value for table in reversed(tables) for key, value in table.items()}
    return [(key, known[key]) for key in wanted if key in known]


def _evaluation(facts: CardFacts) -> str:
    rows = [
        (stage["stage"], key, f"{value:.4f}")
        for stage in facts.stages
        for key, value in stage["metrics"].items()
        if ("loss" in key or "entropy" in key or "perplexity" in key)
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    ]
    if not rows:
        return ""
    note = "Losses are cross-entropies in nats per token of this tokenizer; `val_` is text that was not trained on."
    return f"## Evaluation\n\n{_table(('stage', 'metric', 'value'), rows)}\n\n{note}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def card_problems(text: str) -> list[str]:
    """What is wrong with a card, as far as it can be known without asking the Hub; empty when it is fine."""
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        data = ModelCard(text).data.to_dict()
    except Exception as error:  # noqa: BLE001  the client passes on whatever its YAML library raises
        return [_("The metadata of the model card cannot be read: {error}").format(error=error)]
    missing = [key for key in REQUIRED if not data.get(key)]
    problems = [_("The model card does not say: {keys}.").format(keys=", ".join(missing))] if missing else []
    try:
        if data.get("base_model"):
            validate_repo_id(data["base_model"])
    except HFValidationError as error:
        problems.append(_("The model card's base_model is no Hub id: {error}").format(error=error))
    return problems
