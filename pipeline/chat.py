"""The form of a chat, as a template that travels with the tokenizer, and as tokens of which only answers are learned.

    ### Human: QUESTION
    ### Assistant: ANSWER<end-of-text>
    ### Human: …

A system message stands before the first question, followed by an empty line. Training renders with the very template
that generation uses later, and encodes the whole conversation at once: SentencePiece puts a space before every text it
is given, so that an answer encoded alone would begin with other tokens than one generated after its question.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.instructions import Conversation

if TYPE_CHECKING:
    from pipeline.events import Reporter

#: Not part of the loss (torch's ``ignore_index``).
IGNORED = -100
#: Questions tried for the sample, until one gets an answer: a small model may end its answer at once.
SHOWN_QUESTIONS = 5

_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] | trim }}{{ '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Human: ' }}{{ message['content'] | trim }}{{ '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Assistant: ' }}{{ message['content'] | trim }}{{ eos_token }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:' }}{% endif %}"
)


def chat_template(tokenizer: Any) -> str:
    """The Jinja template for ``tokenizer``.

    It begins with the bos token where the tokenizer itself puts one before a text: the model knows no other beginning,
    and a chat template's text is encoded without such additions.
    """
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
    return ("{{ bos_token }}" if begins else "") + _TEMPLATE


@dataclass(frozen=True)
class Example:
    """One conversation as tokens.

    ``labels`` is ``input_ids`` where a token belongs to an answer or ends one, and :data:`IGNORED` elsewhere (same
    length; not shifted). ``was_cut`` when it was longer than the limit.
    """

    input_ids: list[int]
    labels: list[int]
    was_cut: bool

    @property
    def learned(self) -> int:
        """How many tokens the loss counts: the first token of a text is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode(conversation: Conversation, tokenizer: Any, max_length: int) -> Example:
    """The first ``max_length`` tokens of a conversation.

    ``tokenizer`` has :func:`chat_template` set. An answer's tokens are those that follow the tokens of its prompt
    alone, which is what generation starts from. Raises :class:`UcllmError` when the tokenizer cannot read its own
    end-of-text symbol in the middle of a text.
    """
    text = _render(tokenizer, conversation)
    # By id and not by name: a SentencePiece control symbol is not recognised in a text.
    ids = [*_ids(tokenizer, text[: -len(tokenizer.eos_token)]), tokenizer.eos_token_id]
    labels = [IGNORED] * len(ids)
    for index, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        start = _common(ids, _ids(tokenizer, _render(tokenizer, conversation[:index], prompt=True)))
        last = index == len(conversation) - 1
        end = len(ids) if last else _common(ids, _ids(tokenizer, _render(tokenizer, conversation[: index + 1])))
        if ids[end - 1] != tokenizer.eos_token_id:
            raise UcllmError(
                "tokenizer.eos-not-text",
                _("The tokenizer does not recognise {token} within a text.").format(token=tokenizer.eos_token),
                _("A conversation of several turns needs it after each answer."),
                _("Use single questions and answers, or a tokenizer with user-defined symbols."),
            )
        labels[start:end] = ids[start:end]
    return Example(ids[:max_length], labels[:max_length], len(ids) > max_length)


def _render(tokenizer: Any, conversation: Conversation, prompt: bool = False) -> str:
    return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _common(left: list[int], right: list[int]) -> int:
    """How many tokens two sequences share from the start."""
    pairs: Iterable[tuple[int, int]] = zip(left, right)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


@dataclass
class Data:
    """The examples; how many conversations were cut (some answer tokens stayed) or dropped (none did).

    ``questions`` are a few to try the model on: held-out ones, if any are.
    """

    train: list[Example]
    held_out: list[Example]
    questions: list[str]
    cut: int
    dropped: int


def prepare(
    conversations: Sequence[Conversation], tokenizer: Any, length: int, fraction: float, report: Reporter
) -> Data:
    """Encode everything and hold out the last ``fraction``, at least one conversation of two or more.

    Raises :class:`UcllmError` when no conversation keeps any of an answer within ``length`` tokens.
    """
    encoded = [encode(each, tokenizer, length) for each in conversations]
    kept = [index for index, each in enumerate(encoded) if each.learned]
    cut = sum(encoded[index].was_cut for index in kept)
    dropped = len(encoded) - len(kept)
    if cut:
        text = _("{count} of {total} conversations are longer than {length} tokens; their ends were cut.")
        report.note(text.format(count=cut, total=len(encoded), length=length))
    if dropped:
        text = _("{count} of {total} conversations were left out: their first {length} tokens hold no answer.")
        report.note(text.format(count=dropped, total=len(encoded), length=length))
    if not kept:
        raise UcllmError(
            "finetune.nothing-left",
            _("No conversation has an answer within {length} tokens.").format(length=length),
            _("Their questions alone are that long."),
            _("Use a model that reads more, raise finetune.max_seq_length, or shorten the questions."),
        )
    count = min(len(kept) - 1, max(1, round(len(kept) * fraction))) if fraction else 0
    split = len(kept) - count
    if not count:
        report.note(_("Nothing is held out: finetune.validation_fraction is 0, or there is one conversation only."))
    shown = kept[split:] or kept
    questions = [_first_question(conversations[index]) for index in shown[:SHOWN_QUESTIONS]]
    return Data([encoded[i] for i in kept[:split]], [encoded[i] for i in kept[split:]], questions, cut, dropped)


def _first_question(conversation: Conversation) -> str:
    return next(message["content"] for message in conversation if message["role"] == "user")


def prompt_ids(question: str, tokenizer: Any) -> list[int]:
    """The tokens that generating an answer to ``question`` starts from."""
    return _ids(tokenizer, _render(tokenizer, [{"role": "user", "content": question}], prompt=True))
