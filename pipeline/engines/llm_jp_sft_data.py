"""The conversations as the text file that llm-jp-sft reads, and whether its collator will find the answers in it.

``train.py`` gets one text a conversation, encodes it, and trl's ``DataCollatorForCompletionOnlyLM`` looks in the tokens
for those of ``### Human:`` and ``### Assistant:``, less the first one of each (SentencePiece's blank before a text).
Where it does not find them it says so among a thousand lines of a log, and learns nothing from that conversation, or
the questions too. Whether it finds them depends on the tokenizer, so the real ones are asked, before anything starts.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.chat import IGNORED, Example
from pipeline.engines.llm_jp_sft import INSTRUCTION, RESPONSE
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.instructions import Conversation

#: Between an answer's end and the next question the collator leaves a few tokens to be learned: a blank, the line
#: feed, and the first token of ``### Human:``, which ``train.py`` cuts off what it looks for.
BETWEEN = 3


def render(conversations: Sequence[Conversation], tokenizer: Any) -> list[str]:
    """One text each, in the form of the chat template; without the bos token that the tokenizer adds itself."""
    texts = [str(tokenizer.apply_chat_template(each, tokenize=False)) for each in conversations]
    begin = "{{ bos_token }}"
    if not (tokenizer.chat_template or "").startswith(begin):
        return texts
    return [text[len(tokenizer.bos_token) :] for text in texts]


def write(path: Path, texts: Sequence[str]) -> None:
    """A JSON object a line, with the key ``text``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")


def read_as_it_is(path: Path) -> list[str]:
    """The texts of a file of the user's own that goes to ``train.py`` as it is.

    Raises :class:`UcllmError` when a line has no ``text``.
    """
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            text = json.loads(line).get("text")
            if not isinstance(text, str):
                raise UcllmError(
                    "data.bad-line",
                    _("Line {number} of {path} has no `text`.").format(number=number, path=path),
                    _("The published launch gives the file to llm-jp-sft as it is, which reads nothing else."),
                    _("Leave out `--compat`: ucllm then writes the file that llm-jp-sft reads."),
                )
            texts.append(text)
    return texts


def learned(texts: Sequence[str], tokenizer: Any, length: int) -> list[Example]:
    """What ``train.py`` makes of each text: its first ``length`` tokens, and those that the loss will count.

    ``tokenizer`` is loaded as ``train.py`` does. Raises :class:`UcllmError` when it cannot fill up a batch, or when
    this environment's trl has no such collator.
    """
    trl = importlib.import_module("trl")
    if not hasattr(trl, "DataCollatorForCompletionOnlyLM"):
        raise UcllmError(
            "finetune.trl",
            _("llm-jp-sft does not run with trl {version}.").format(version=trl.__version__),
            _("It needs DataCollatorForCompletionOnlyLM, which later versions of trl do not have."),
            _("Use `--engine trl`, or a workspace of the guide's profile: `ucllm setup --profile gcp-2024.02`."),
        )
    if tokenizer.pad_token_id is None:
        raise UcllmError(
            "finetune.no-pad",
            _("The model's tokenizer has no token to fill up a batch with."),
            _("llm-jp-sft takes it from the tokenizer (`pad_token`)."),
            _("Use `--engine trl`, which needs none."),
        )
    instruction, response = (tokenizer.encode(each, add_special_tokens=False)[1:] for each in (INSTRUCTION, RESPONSE))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it does not find is counted here
        collate = trl.DataCollatorForCompletionOnlyLM(
            instruction_template=instruction, response_template=response, tokenizer=tokenizer
        )
        for text in texts:
            whole = [int(token) for token in tokenizer(text)["input_ids"]]
            ids = whole[:length]
            labels = collate([{"input_ids": ids, "attention_mask": [1] * len(ids)}])["labels"][0].tolist()
            found.append(Example(ids, [int(label) for label in labels], len(whole) > length))
    return found


def misread(wanted: Example, seen: Example, eos: int) -> bool:
    """Whether ``seen`` counts not all tokens of answers that ``wanted`` does, or tokens of questions as well."""
    if seen.input_ids != wanted.input_ids:
        return True
    pairs = list(zip(wanted.labels, seen.labels))
    missing = any(ours != IGNORED and theirs == IGNORED for ours, theirs in pairs[1:])
    more = sum(ours == IGNORED and theirs != IGNORED for ours, theirs in pairs[1:])
    return missing or more > BETWEEN * wanted.input_ids.count(eos)


def refuse_misread(texts: Sequence[str], bad: Sequence[bool]) -> None:
    """Raise :class:`UcllmError` when any of ``texts`` is marked in ``bad``."""
    if not any(bad):
        return
    first = texts[list(bad).index(True)]
    what = _("llm-jp-sft would not find the answers in {count} of {total} conversations.")
    why = _("With this model's tokenizer, {human} and {assistant} are not cut out as it expects; the first one: {text}")
    raise UcllmError(
        "finetune.templates",
        what.format(count=sum(bad), total=len(texts)),
        why.format(human=f"`{INSTRUCTION}`", assistant=f"`{RESPONSE}`", text=repr(first[:120])),
        _("Use `--engine trl`, which finds them by its own, or leave these conversations out."),
    )
