"""Instruction data: conversations from a JSONL file in three shapes, or from a text by a fixed rule.

The shapes, one JSON object a line (other keys are ignored):

* ``{"text": "### Human: …\\n### Assistant: …"}``: the form of OpenAssistant-guanaco and of the guide; the newline
  before a marker may be missing, turns may repeat, and what stands before the first marker is a system message;
* ``{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}``, with turns by turns and
  a ``system`` message first or none;
* ``{"prompt": "…", "completion": "…"}``.

A question without an answer at the end of a conversation teaches nothing and is left out, with a count.

The rule for a text (``finetune.data = "corpus"``) is :func:`from_corpus`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, UcllmError
from pipeline.i18n import _
from pipeline.texts import Faults, open_texts, records

#: Messages with ``role`` (``system``, ``user`` or ``assistant``) and ``content``, as transformers' chat templates take
#: them: perhaps a system message, then user and assistant by turns, the assistant last.
Conversation = list[dict[str, str]]

SHAPES = (
    '{"text": "### Human: …\\n### Assistant: …"}',
    '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    '{"prompt": "…", "completion": "…"}',
)

_TURN = re.compile(r"### (Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass
class Instructions:
    """What a data file holds. ``unanswered`` counts closing questions that were left out."""

    conversations: list[Conversation]
    unanswered: int = 0


class _Faults(Faults):
    """Bad lines of instruction data, each with the shapes that would be good."""

    def bad_line(self, path: Path, number: int, why: str) -> None:
        what = _("Line {number} of {path} is not instruction data.").format(number=number, path=path)
        hint = _("Each line must be one of: {shapes}").format(shapes="  ".join(SHAPES))
        self.add(Problem("data.bad-line", what, why, hint))


def read_instructions(path: Path) -> Instructions:
    """Read a JSONL file, plain or ``.gz``, in any mixture of the three shapes; blank lines are skipped.

    Raises :class:`UcllmError` with every bad line (up to :data:`pipeline.texts.MOST_PROBLEMS`), or when the file holds
    no conversation at all.
    """
    result, faults = Instructions([]), _Faults()
    for messages in records(path, _messages, faults):
        if messages[-1]["role"] == "user":
            messages.pop()
            result.unanswered += 1
        result.conversations.append(messages)
    faults.raise_if_any()
    if not result.conversations:
        hint = _("Each line must be one of: {shapes}").format(shapes="  ".join(SHAPES))
        raise UcllmError("data.empty", _("{path} holds no conversations.").format(path=path), hint=hint)
    return result


def _messages(item: Mapping[str, Any]) -> Conversation:
    """The messages of one JSON line, in whichever shape. Raises ``ValueError`` with a sentence about what is wrong."""
    if isinstance(item.get("messages"), list):
        messages = [_message(entry) for entry in item["messages"]]
    elif isinstance(item.get("prompt"), str) and isinstance(item.get("completion"), str):
        messages = _pair(item["prompt"], item["completion"])
    elif isinstance(item.get("text"), str):
        messages = _turns(item["text"])
    else:
        keys = ", ".join(f"`{key}`" for key in list(item)[:6]) or _("none")
        raise ValueError(_("It has none of the three shapes; its keys: {keys}.").format(keys=keys))
    _check(messages)
    return messages


def _message(entry: Any) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("role", "content")):
        raise ValueError(_("A message must have a role and a content, both texts."))
    return {"role": entry["role"], "content": entry["content"].strip()}


def _pair(question: str, answer: str) -> Conversation:
    return [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]


def _turns(text: str) -> Conversation:
    """Cut a text of the guide's form at its markers."""
    before, *parts = _TURN.split(text)
    if not parts:
        raise ValueError(_("Its text has no `### Human:` and `### Assistant:`."))
    messages = [{"role": "system", "content": before.strip()}] if before.strip() else []
    for marker, content in zip(parts[::2], parts[1::2]):
        messages.append({"role": _ROLES[marker], "content": content.strip()})
    return messages


def _check(messages: Conversation) -> None:
    """Raises ``ValueError`` unless questions and answers alternate, with at least one answer and none of them empty."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    for number, message in enumerate(turns, 1):
        wanted = "user" if number % 2 else "assistant"
        if message["role"] != wanted:
            text = _("Turn {number} is of `{role}` and must be of `{wanted}`: questions and answers alternate.")
            raise ValueError(text.format(number=number, role=message["role"], wanted=wanted))
    if len(turns) < 2:
        raise ValueError(_("It has no answer to learn from."))
    answered = turns[: len(turns) // 2 * 2]
    for number, message in enumerate(answered, 1):
        if not message["content"]:
            kind = _("question") if number % 2 else _("answer")
            raise ValueError(_("The {kind} of turn {number} is empty.").format(kind=kind, number=number))
        try:
            message["content"].encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(_("Turn {number} holds half of a surrogate pair.").format(number=number)) from error


#: Fewer exchanges than this are too few to learn the form from, and sentences are taken instead.
ENOUGH_EXCHANGES = 50
#: Pairs of sentences taken at most, evenly from the whole text.
MOST_SENTENCES = 500

_UTTERANCE = re.compile(r'^(?:"([^"]{2,400})"|“([^”]{2,400})”|「([^」]{2,400})」)(?=\s*$)', re.MULTILINE)
_SENTENCE = re.compile(r"\S[^.!?。！？]*[.!?。！？]+[\"'”’」』)]*(?=\s|$|(?<=[。！？」』]))")
_SENTENCE_LENGTH = (20, 200)


def from_corpus(text: str) -> list[Conversation]:
    """Questions and answers out of a plain text, always the same ones from the same text.

    1. *Exchanges*: an utterance is a quotation of 2 to 400 characters that begins at the start of a line and ends at
       the end of one. Where another follows on the next line, the first is a question and the second its answer (and
       perhaps in turn a question).
    2. If that finds fewer than :data:`ENOUGH_EXCHANGES`, *sentences*: a sentence is the question, the next one the
       answer, both 20 to 200 characters long; of these at most :data:`MOST_SENTENCES`, at even distances.

    A line break within an utterance or a sentence becomes a space. Raises :class:`UcllmError` when nothing is found.
    """
    pairs = _exchanges(text)
    if len(pairs) < ENOUGH_EXCHANGES:
        pairs = _neighbours(text) or pairs
    if not pairs:
        raise UcllmError(
            "data.no-pairs",
            _("The corpus gives no questions and answers to fine-tune on."),
            _("It holds neither quoted exchanges nor neighbouring sentences."),
            _("Give instruction data of your own: `--set finetune.data=FILE.jsonl`."),
        )
    return [_pair(*pair) for pair in pairs]


def _on_one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text).strip()


def _exchanges(text: str) -> list[tuple[str, str]]:
    found = [(match.span(), next(filter(None, match.groups()))) for match in _UTTERANCE.finditer(text)]
    pairs = []
    for ((_start, end), first), ((start, _end), second) in zip(found, found[1:]):
        if start - end <= 1:
            pairs.append((_on_one_line(first), _on_one_line(second)))
    return pairs


def _neighbours(text: str) -> list[tuple[str, str]]:
    sentences = [_on_one_line(match.group()) for match in _SENTENCE.finditer(text)]
    shortest, longest = _SENTENCE_LENGTH
    fits = [shortest <= len(sentence) <= longest for sentence in sentences]
    pairs = [sentences[i : i + 2] for i in range(len(sentences) - 1) if fits[i] and fits[i + 1]]
    step = max(1, -(-len(pairs) // MOST_SENTENCES))
    return [(first, second) for first, second in pairs[::step]]


def corpus_text(paths: Sequence[Path], rules: Mapping[str, Any]) -> str:
    """The text of the corpus files, an empty line between documents, read as the corpus stage reads them.

    Raises :class:`UcllmError` with everything that is wrong with them.
    """
    texts = open_texts(paths, rules)
    text = "\n\n".join(texts.documents(0))
    texts.faults.raise_if_any()
    return text
