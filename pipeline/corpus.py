"""Step 2, first half: text to token ids, in Megatron's ``.bin/.idx`` (:mod:`pipeline.indexed_dataset`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import indexed_dataset, spm
from pipeline.config import Config, padded_vocab_size
from pipeline.errors import UcllmError
from pipeline.i18n import _
from pipeline.runs import StagePlan
from pipeline.texts import Texts, chosen, excerpt_rules, is_jsonl, open_texts, reading_rules

if TYPE_CHECKING:
    from pipeline.child import Job
    from pipeline.events import Reporter
    from pipeline.stages import Sources

#: Megatron's own ending: the key of the JSON lines and the level.
SUFFIX = "_text_document"


def plan(stage: str, config: Config, sources: Sources) -> StagePlan:
    """``corpus_text_document.{bin,idx}``, or ``PREFIX_text_document.{bin,idx}`` of the user's own."""
    paths = chosen(config, sources)
    prefix = sources.output or sources.home(stage) / "corpus"
    tokenizer = sources.tokenizer or sources.root / "tokenizer" / "tokenizer.model"
    rules = {**reading_rules(config, paths), **excerpt_rules(config, paths)}
    settings: dict[str, Any] = {"append_eod": config.corpus.append_eod, **rules}
    if not all(is_jsonl(path) for path in paths):
        settings["lines_per_document"] = config.corpus.lines_per_document
    return StagePlan(
        stage,
        sources.home(stage),
        {"corpus": settings},
        {**{f"input {number}": path for number, path in enumerate(paths, 1)}, "tokenizer": tokenizer.absolute()},
        {kind: prefix.with_name(f"{prefix.name}{SUFFIX}.{kind}") for kind in ("bin", "idx")},
    )


def run(job: Job, report: Reporter) -> dict[str, Any]:
    """Encode every document and write both files.

    Metrics: ``documents``, ``empty_documents`` (left out: nothing to encode, as Megatron does), ``tokens`` (<EOD>
    included), ``bytes`` (of the documents' text in UTF-8), ``bad_lines`` (left out), ``unigram_entropy_nats`` (of the
    tokens' distribution in this corpus), ``vocab_size``, ``padded_vocab_size``.
    """
    import numpy
    import sentencepiece

    settings = job.config["corpus"]
    texts = _texts(job)
    processor = spm.load(job.inputs["tokenizer"])
    ending = [spm.eod_id(processor)] if settings["append_eod"] else []
    vocab_size = processor.get_piece_size()
    padded = padded_vocab_size(vocab_size)
    prefix = _prefix(job)
    documents = empty = text_bytes = 0
    with indexed_dataset.Writer(prefix, indexed_dataset.best_dtype(padded)) as writer:
        for size, tokens in encoded(texts, settings.get("lines_per_document", 0), processor):
            if tokens:
                writer.add_document(tokens + ending)
                documents += 1
                text_bytes += size
            else:
                empty += 1
            texts.progress(report, documents=documents)
        texts.faults.raise_if_any()
        if not documents:
            raise _nothing(empty, texts.faults.bad_lines)
        writer.finish()
    report.progress(texts.total, texts.total, "B", documents=documents)
    if texts.faults.bad_lines:
        report.note(texts.faults.note())
    if empty:
        report.note(_("{count} documents without any text were left out.").format(count=f"{empty:,}"))
    dataset = indexed_dataset.IndexedDataset(prefix)
    return {
        "documents": documents,
        "empty_documents": empty,
        "tokens": len(dataset.tokens),
        "bytes": text_bytes,
        "bad_lines": texts.faults.bad_lines,
        "unigram_entropy_nats": round(entropy_nats(dataset.token_counts(vocab_size)), 6),
        "vocab_size": vocab_size,
        "padded_vocab_size": padded,
        "versions": {"sentencepiece": sentencepiece.__version__, "numpy": numpy.__version__},
    }


def _texts(job: Job) -> Texts:
    return open_texts([path for name, path in job.inputs.items() if name != "tokenizer"], job.config["corpus"])


def encoded(texts: Texts, lines_per_document: int, processor: Any) -> Iterator[tuple[int, list[int]]]:
    """For each document, in order: the bytes of its text in UTF-8, and its token ids without <EOD>.

    Once something is wrong with the texts they are read on, to find the rest of it, but encoded no more.
    """
    for text in texts.documents(lines_per_document):
        if not texts.faults.problems:
            yield len(text.encode("utf-8")), processor.encode(text)


def entropy_nats(counts: Any) -> float:
    """The entropy of the distribution of ``counts`` [vocabulary]: the loss of a model that knows only frequencies."""
    import numpy as np

    present = counts[counts > 0]
    share = present / present.sum()
    return float(-(share * np.log(share)).sum())


def _nothing(empty: int, bad_lines: int) -> UcllmError:
    why = _("The input holds no text at all.")
    if bad_lines:
        why = _("All {count} lines are bad and were left out (corpus.on_bad_line=skip).").format(count=bad_lines)
    elif empty:
        why = _("None of its {count} documents holds any text.").format(count=empty)
    return UcllmError("data.empty", _("There is nothing to tokenize."), why)


def _prefix(job: Job) -> Path:
    return job.outputs["bin"].with_suffix("")


def verify(job: Job) -> list[str]:
    """Open the files as a stranger would: a sound index, ids the tokenizer knows, <EOD>, the right first document."""
    problems = indexed_dataset.check(_prefix(job))
    if problems:
        return problems
    settings = job.config["corpus"]
    processor = spm.load(job.inputs["tokenizer"])
    size = processor.get_piece_size()
    dataset = indexed_dataset.IndexedDataset(_prefix(job))
    largest = int(dataset.tokens.max())
    if largest >= size:
        return [_("The corpus holds token {token}; the tokenizer has {size}.").format(token=largest, size=size)]
    ending = [spm.eod_id(processor)] if settings["append_eod"] else []
    last = len(dataset) - 1
    problems += [
        _("Document {number} does not end with <EOD>.").format(number=number)
        for number in sorted({0, last})
        if ending and dataset[number][-1] != ending[0]
    ]
    first = next(
        tokens for _size, tokens in encoded(_texts(job), settings.get("lines_per_document", 0), processor) if tokens
    )
    if dataset[0].tolist() != first + ending:
        problems.append(_("The first document is not the first text."))
    return problems
