"""SentencePiece models as this pipeline uses them: the published special tokens, and how to open one safely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import UcllmError
from pipeline.i18n import _

EOD = "<EOD>"
#: The published recipe's user-defined symbols, in order: ids 1 to 8, after ``<unk>`` with id 0.
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<CLS>", "<SEP>", EOD, "<MASK>", "\n")


def load(path: Path) -> Any:
    """The ``SentencePieceProcessor`` of a ``.model`` file. Raises :class:`UcllmError` when it is none."""
    import sentencepiece

    try:
        # Read here, because the library's errors for a missing file differ between versions.
        return sentencepiece.SentencePieceProcessor(model_proto=_content(path))
    except RuntimeError as error:
        raise _unusable(path, _("It is not a SentencePiece model.")) from error


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unusable(path, str(error.strerror)) from error
    if not content:
        raise _unusable(path, _("It is empty."))
    return content


def _unusable(path: Path, why: str) -> UcllmError:
    what = _("Cannot use {path} as a tokenizer.").format(path=path)
    return UcllmError("tokenizer.unusable", what, why, _("Give the `.model` file that `ucllm train tokenizer` made."))


def piece_id(processor: Any, piece: str) -> int | None:
    """The id of exactly this piece; ``None`` when the model does not hold it (the library would say ``<unk>``)."""
    number = int(processor.piece_to_id(piece))
    return number if processor.id_to_piece(number) == piece else None


def eod_id(processor: Any) -> int:
    """The id of ``<EOD>``, which ends a document. Raises :class:`UcllmError` when the model has none."""
    number = piece_id(processor, EOD)
    if number is None:
        raise UcllmError(
            "tokenizer.no-eod",
            _("The tokenizer has no {piece} to end documents with.").format(piece=EOD),
            _("It was not trained with the published special tokens."),
            _("Train one with `ucllm train tokenizer`, or use `--set corpus.append_eod=false`."),
        )
    return number


def vocab_text(processor: Any) -> str:
    """The content of the ``.vocab`` file as SentencePiece writes it: a line for each piece, its log probability."""
    count = processor.get_piece_size()
    return "".join(f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in range(count))
