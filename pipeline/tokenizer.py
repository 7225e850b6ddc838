"""Step 1: train the SentencePiece tokenizer with the published options.

They are those of ``train_sentencepiece_tokenizer.py`` of the published recipe, as the trainer specification inside its
models records them: a unigram model with byte fallback, digits split, whitespace kept, the special tokens of
:data:`pipeline.spm.SPECIAL_TOKENS`. SentencePiece's result depends on its number of threads, so the recipe pins it.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline import spm
from pipeline.config import Config, TokenizerConfig, section
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.runs import StagePlan
from pipeline.texts import Texts, chosen, open_texts, reading_rules

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.events import Reporter
    from pipeline.stages import Sources

#: Lines that SentencePiece keeps; of more it takes a sample (with a seed of its own, so always the same).
INPUT_SENTENCE_SIZE = 10_000_000
PUBLISHED_OPTIONS: dict[str, Any] = {
    "model_type": "unigram",
    "input_sentence_size": INPUT_SENTENCE_SIZE,
    "shuffle_input_sentence": True,
    "split_digits": True,
    "byte_fallback": True,
    "allow_whitespace_only_pieces": True,
    "remove_extra_whitespaces": False,
    "user_defined_symbols": list(spm.SPECIAL_TOKENS),
}


def plan(stage: str, config: Config, sources: Sources) -> StagePlan:
    """``tokenizer.model`` and ``tokenizer.vocab``, or ``PREFIX.model`` and ``PREFIX.vocab`` of the user's own."""
    paths = chosen(config, sources)
    prefix = sources.output or sources.home(stage) / "tokenizer"
    return StagePlan(
        stage,
        sources.home(stage),
        {"tokenizer": section(config, "tokenizer"), "reading": reading_rules(config, paths)},
        {f"input {number}": path for number, path in enumerate(paths, 1)},
        {kind: prefix.with_name(f"{prefix.name}.{kind}") for kind in ("model", "vocab")},
    )


def run(job: Job, report: Reporter) -> dict[str, Any]:
    """Train and write both files. Metrics: ``vocab_size``, ``lines`` fed, ``long_lines`` and ``bad_lines`` left out."""
    import sentencepiece

    settings, reading = job.config["tokenizer"], job.config["reading"]
    texts = open_texts(list(job.inputs.values()), reading)
    feed = _Feed(texts, settings, report)
    model = io.BytesIO()
    try:
        # From an iterator to a writer: a model trained from files holds their paths and differs between folders.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(feed),
            model_writer=model,
            vocab_size=settings["vocab_size"],
            character_coverage=settings["character_coverage"],
            num_threads=settings["num_threads"],
            max_sentence_length=settings["max_line_bytes"],
            **PUBLISHED_OPTIONS,
        )
    except (RuntimeError, ValueError, SystemError) as error:
        # SystemError is how SentencePiece up to 0.2.1 ends when the iterator raised; it has trained to the end by then.
        raise feed.error or _explained(str(error), settings["vocab_size"]) from error
    job.outputs["model"].write_bytes(model.getvalue())
    processor = spm.load(job.outputs["model"])
    with job.outputs["vocab"].open("w", encoding="utf-8", newline="") as stream:
        stream.write(spm.vocab_text(processor))
    return {
        "vocab_size": processor.get_piece_size(),
        "lines": feed.lines,
        "long_lines": feed.long_lines,
        "bad_lines": texts.faults.bad_lines,
        "versions": {"sentencepiece": sentencepiece.__version__},
    }


class _Feed:
    """The lines for SentencePiece, counted. What goes wrong is kept in ``error``: SentencePiece would lose it."""

    def __init__(self, texts: Texts, settings: dict[str, Any], report: Reporter) -> None:
        self.texts = texts
        self.settings = settings
        self.report = report
        self.lines = 0
        self.long_lines = 0
        self.error: UcllmError | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for line in self._usable():
                self.lines += 1
                if self.lines % 1000 == 0:
                    self.texts.progress(self.report)
                yield line
            self.texts.faults.raise_if_any()
            if not self.lines:
                raise self._nothing()
            self._say_what_follows()
        except UcllmError as error:
            self.error = error
            raise

    def _usable(self) -> Iterator[bytes]:
        limit = self.settings["max_line_bytes"]
        for line in self.texts.lines():
            bare = line.rstrip("\r")
            # A carriage return is a space to SentencePiece's normalizer, but its Python wrapper drops it unseen; the
            # published vocabulary (of a text with CRLF) was learned with it.
            encoded = (bare + " " * (len(line) - len(bare))).encode("utf-8")
            if len(encoded) > limit:
                self.long_lines += 1
            elif encoded.strip() and not self.texts.faults.problems:
                yield encoded

    def _nothing(self) -> UcllmError:
        if self.long_lines:
            return UcllmError(
                "data.empty",
                _("There is nothing to train the tokenizer on."),
                _("All {count} lines are longer than tokenizer.max_line_bytes, {limit}.").format(
                    count=self.long_lines, limit=self.settings["max_line_bytes"]
                ),
                _("Raise it: `--set tokenizer.max_line_bytes=100000`."),
            )
        return UcllmError(
            "data.empty", _("There is nothing to train the tokenizer on."), _("The input holds no text at all.")
        )

    def _say_what_follows(self) -> None:
        if self.texts.faults.bad_lines:
            self.report.note(self.texts.faults.note())
        if self.long_lines:
            self.report.note(
                _("{count} lines longer than {limit} bytes were left out (tokenizer.max_line_bytes).").format(
                    count=f"{self.long_lines:,}", limit=self.settings["max_line_bytes"]
                )
            )
        if self.lines > INPUT_SENTENCE_SIZE:
            self.report.note(
                _("Of {count} lines a sample of {size} is used, always the same.").format(
                    count=f"{self.lines:,}", size=f"{INPUT_SENTENCE_SIZE:,}"
                )
            )
        text = _(
            "Learning {pieces} pieces from {lines} lines with {threads} threads (their number decides the result)."
        )
        pieces, threads = self.settings["vocab_size"], self.settings["num_threads"]
        self.report.note(text.format(pieces=pieces, lines=f"{self.lines:,}", threads=threads))


def _explained(message: str, vocab_size: int) -> UcllmError:
    """SentencePiece's refusal in words that help. The patterns are those of its ``trainer_interface.cc``."""
    what = _("A vocabulary of {size} pieces cannot be made from this text.").format(size=vocab_size)
    most = re.search(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", message)
    if most:
        least = next(item for item in dataclasses.fields(TokenizerConfig) if item.name == "vocab_size").metadata["low"]
        possible = int(most[1])
        why = _("The text has no more than {count} pieces in it.").format(count=possible)
        more = _("Give more text.")
        hint = f"`--set tokenizer.vocab_size={possible}`" if possible >= least else more
        return UcllmError("tokenizer.vocab-too-large", what, why, hint)
    needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if needed:
        why = _("Its characters alone need {count} pieces.").format(count=needed[1])
        return UcllmError("tokenizer.vocab-too-small", what, why, f"`--set tokenizer.vocab_size={needed[1]}`")
    return UcllmError("tokenizer.failed", _("SentencePiece could not train the tokenizer."), message)


def verify(job: Job) -> list[str]:
    """Open both files as a stranger would: size, special tokens, the text round trip, the list of pieces."""
    processor = spm.load(job.outputs["model"])
    problems = []
    wanted, size = job.config["tokenizer"]["vocab_size"], processor.get_piece_size()
    if size != wanted:
        problems.append(_("The tokenizer has {size} pieces, not {wanted}.").format(size=size, wanted=wanted))
    found = [processor.id_to_piece(number) for number in range(min(size, len(spm.SPECIAL_TOKENS) + 1))]
    if found != ["<unk>", *spm.SPECIAL_TOKENS]:
        problems.append(_("Its first pieces are {found}, not the special tokens.").format(found=found))
    sample = "Once upon a time,\n吾輩は猫である。 12 🐈"
    if processor.decode(processor.encode(sample)) != sample:
        problems.append(_("It does not give back the text {text!r}.").format(text=sample))
    if job.outputs["vocab"].read_bytes() != spm.vocab_text(processor).encode("utf-8"):
        problems.append(_("The .vocab file does not list the pieces of the .model file."))
    return problems
