"""A SentencePiece unigram model as a Hugging Face tokenizer folder whose ids are SentencePiece's own.

Stock components only (no code travels with the model). Where they differ from SentencePiece by default:

* **Normalisation**: see :mod:`pipeline.hf_charsmap`.
* **Special tokens**: Hugging Face cuts a text at its added tokens before anything else, so that what follows one would
  get a new dummy prefix. SentencePiece's user-defined symbols are ordinary pieces with a score that nothing beats.
  They are that here too; ``split_special_tokens`` keeps transformers from cutting, and the roles (eos, pad, …) still
  make them special for decoding, padding and generation.
* **Scores**: ``tokenizers`` matches byte, control and unknown pieces in a text, SentencePiece does not; and it counts
  every piece towards the score of an unknown character. Adding the same amount *per character* to every score changes
  no choice (all readings of a text have the same length) and lets those pieces sit where they cannot win.

What stays: SentencePiece adds scores in single precision over the whole text, ``tokenizers`` in double. Where two
readings score the same to within that rounding (`-----` as `-- -- -` or `- -- --`), SentencePiece's choice depends on
the text before it and on its version, and another reading of equal score may be taken here.
:func:`pipeline.tokenizer_parity.parity` marks these. Two more limits: transformers 4.37 ignores
``split_special_tokens``, so there only texts without a special symbol are exact; and *control* symbols are never read
from text, as in SentencePiece, so that a chat template cannot spell them (user-defined ones it can).
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import spm
from pipeline.errors import UcllmError
from pipeline.hf_charsmap import Step, charsmap_steps, escape
from pipeline.i18n import _

SPACE = "\u2581"

# sentencepiece_model.proto: ModelProto.SentencePiece.Type and TrainerSpec.ModelType.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM = 1
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

# kUnkPenalty of SentencePiece's unigram_model.cc, K_UNK_PENALTY of tokenizers' unigram/model.rs.
_UNKNOWN_PENALTY = 10.0

_ALL = 2**31 - 1

# What the pieces of the guide's tokenizer are for; only names that the model holds are used.
_ROLES = {
    "bos_token": ("<s>", "<bos>", "<BOS>", "<|begin_of_text|>"),
    "pad_token": ("<pad>", "<PAD>", "[PAD]"),
    "cls_token": ("<CLS>", "<cls>", "[CLS]"),
    "sep_token": ("<SEP>", "<sep>", "[SEP]"),
    "mask_token": ("<MASK>", "<mask>", "[MASK]"),
}
# A base model's documents end with <EOD> (the corpus stage appends it), so generation must stop there.
_EOS = ("<EOD>", "<eod>", "<|endoftext|>", "</s>", "<eos>", "<EOS>")
_LOOKS_SPECIAL = re.compile(r"<[^\s<>]+>|\[[A-Za-z_]+\]")


@dataclass(frozen=True)
class Piece:
    """One vocabulary entry: its text (spaces as U+2581), its score (log probability; 0 unless normal) and its type."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SpModel:
    """What a ``.model`` file says, as far as encoding and decoding depend on it."""

    pieces: tuple[Piece, ...]
    unk_id: int
    unk_surface: str
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    def names(self, kind: int) -> list[str]:
        """The pieces of one type, in the order of their ids."""
        return [p.text for p in self.pieces if p.kind == kind]


def read_model(model: Path) -> SpModel:
    """Read a SentencePiece ``.model``.

    :raises UcllmError: ``tokenizer.unusable`` when it is not one; ``tokenizer.kind`` for a kind of model, or an option,
        that cannot be written exactly: anything but unigram, whitespace as suffix, unescaped whitespace, a
        denormaliser.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(spm.load(model).serialized_model_proto())
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != UNIGRAM:
        kind = _KINDS.get(trainer.model_type, str(trainer.model_type))
        raise _unsupported(
            model,
            _("It is a {kind} model; ids equal to SentencePiece's are only assured for unigram.").format(kind=kind),
        )
    if trainer.treat_whitespace_as_suffix:
        raise _unsupported(model, _("It was trained with treat_whitespace_as_suffix."))
    if not normalizer.escape_whitespaces:
        raise _unsupported(model, _("It was trained with escape_whitespaces=false."))
    if proto.denormalizer_spec.precompiled_charsmap:
        raise _unsupported(model, _("It has a denormaliser, which Hugging Face tokenizers have no counterpart for."))
    pieces = tuple(Piece(p.piece, p.score, p.type) for p in proto.pieces)
    unknown = [i for i, p in enumerate(pieces) if p.kind == UNKNOWN]
    if len(unknown) != 1 or not any(p.kind == NORMAL for p in pieces):
        raise _unsupported(model, _("It has no unknown piece, or no normal one."))
    lone = next((p.text for p in pieces if p.kind == UNUSED and len(p.text) == 1), None)
    if lone is not None:
        raise _unsupported(model, _("Its piece {piece} is a single character marked unused.").format(piece=repr(lone)))
    return SpModel(
        pieces=pieces,
        unk_id=unknown[0],
        unk_surface=trainer.unk_surface,
        byte_fallback=trainer.byte_fallback,
        charsmap=normalizer.precompiled_charsmap,
        add_dummy_prefix=normalizer.add_dummy_prefix,
        remove_extra_whitespaces=normalizer.remove_extra_whitespaces,
    )


def _unsupported(model: Path, why: str) -> UcllmError:
    return UcllmError(
        "tokenizer.kind",
        _("{path} cannot be written as an exact Hugging Face tokenizer.").format(path=model),
        why,
        _("Use it with the sentencepiece library, or train a unigram model: `ucllm train tokenizer`."),
    )


def _normalizer(model: SpModel) -> Step:
    steps: list[Step] = []
    symbols = model.names(USER_DEFINED)
    core = charsmap_steps(model.charsmap, symbols)

    def replace(pattern: str, content: str) -> Step:
        return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}

    space: Step = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix: list[Step] = [{"type": "Prepend", "prepend": SPACE}] if model.add_dummy_prefix else []
    if model.remove_extra_whitespaces:
        # As SentencePiece's Normalize: spaces left, then runs; at the end a prefix or a literal U+2581 goes too.
        steps = [*core, replace("\\A +", ""), replace("  +", " "), *prefix, space, replace(f"{SPACE}+\\z", "")]
    else:
        # First, since a text of nothing but removed characters still gets its prefix.
        steps = [*prefix, *core, space]
    if not model.byte_fallback:
        # A run of unknown characters is one token, however long: longer, it is no piece's name.
        steps += [{"type": "Replace", "pattern": {"String": n}, "content": n[0] + n} for n in _shadowed(model)]
    return {"type": "Sequence", "normalizers": steps}


def _pre_tokenizer(model: SpModel) -> Step | None:
    shadowed = _shadowed(model) if model.byte_fallback else {}
    if not shadowed:
        return None
    ways = "|".join(f"{escape(name[:at])}(?={escape(name[at:])})" for name, at in shadowed.items())
    return {"type": "Split", "pattern": {"Regex": ways}, "behavior": "MergedWithPrevious", "invert": False}


def _vocabulary(model: SpModel) -> list[list[Any]]:
    def single(value: float) -> float:
        return float(struct.unpack("f", struct.pack("f", value))[0])

    lowest = min(p.score for p in model.pieces if p.kind == NORMAL)
    # A piece of n ≥ 2 characters at `lowest + lift` never wins over n unknown characters, the worst other reading:
    # lowest + lift < n * (lowest - penalty + lift) for every n once lift > 2 * penalty - lowest. A power of two adds
    # without rounding.
    lift = 1.0
    while lift <= 2 * (2 * _UNKNOWN_PENALTY + abs(lowest)):
        lift *= 2

    def score(piece: Piece) -> float:
        if piece.kind == NORMAL:
            return piece.score + lift * len(piece.text)
        if piece.kind == USER_DEFINED:
            # GetUserDefinedScore in unigram_model.cc of SentencePiece 0.2.3; the length is in bytes.
            return single(0.1 * (len(piece.text.encode()) - 1)) + lift * len(piece.text)
        # tokenizers gives an unknown character the least score less the penalty, so this must be the least of all.
        return lowest + lift

    return [[p.text, score(p)] for p in model.pieces]


def _shadowed(model: SpModel) -> dict[str, int]:
    """Names that a text may hold and ``tokenizers`` would take for the piece, each with a place to part it at.

    It joins neighbouring unknown characters and looks the whole up, so that `<unk>` in a text becomes the unknown piece
    when none of its letters is a piece. At the place given, no piece reaches across.
    """
    known = [p.text for p in model.pieces if p.kind in (NORMAL, USER_DEFINED)]
    letters, inside = {text for text in known if len(text) == 1}, "\0".join(known)
    out: dict[str, int] = {}
    for piece in model.pieces:
        name = piece.text
        if piece.kind in (NORMAL, USER_DEFINED) or len(name) < 2 or letters & set(name):
            continue
        parts = [at for at in range(1, len(name)) if name[at - 1 : at + 1] not in inside]
        if not parts:
            raise UcllmError(
                "tokenizer.kind",
                _("The tokenizer cannot be written as an exact Hugging Face tokenizer."),
                _("A text that holds {name} could not be told from the piece of that name.").format(name=name),
            )
        out[name] = parts[0]
    return out


def _decoder(model: SpModel) -> Step:
    unknown = escape(model.pieces[model.unk_id].text)
    steps: list[Step] = [
        {"type": "Replace", "pattern": {"Regex": f"\\A{unknown}\\z"}, "content": model.unk_surface},
        *([{"type": "ByteFallback"}] if model.byte_fallback else []),
        {"type": "Fuse"},
    ]
    # SentencePiece drops the dummy prefix, or every leading space where it removes extra ones; not unk_surface's own.
    start = _ALL if model.remove_extra_whitespaces else int(model.add_dummy_prefix)
    if start:
        steps.append({"type": "Strip", "content": SPACE, "start": start, "stop": 0})
    steps.append({"type": "Replace", "pattern": {"String": SPACE}, "content": " "})
    return {"type": "Sequence", "decoders": steps}


def tokenizer_json(model: SpModel) -> dict[str, Any]:
    """The content of ``tokenizer.json``. It names no added token, so that the bare ``tokenizers`` library is exact too.

    :raises UcllmError: ``tokenizer.normalizer``, see :func:`pipeline.hf_charsmap.charsmap_steps`.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": _normalizer(model),
        "pre_tokenizer": _pre_tokenizer(model),
        "post_processor": None,
        "decoder": _decoder(model),
        "model": {
            "type": "Unigram",
            "unk_id": model.unk_id,
            "vocab": _vocabulary(model),
            "byte_fallback": model.byte_fallback,
        },
    }


def special_tokens(model: SpModel, *, eos_token: str | None = None) -> dict[str, Any]:
    """The roles of the model's own pieces: ``unk_token`` and, where it holds such, ``bos_``, ``eos_``, ``pad_token`` ….

    ``eos_token`` names the piece that ends generation; by default ``<EOD>`` where there is one, else ``</s>``. A model
    without a padding piece pads with its eos. Other symbols in angle or square brackets are
    ``additional_special_tokens``; any other user-defined symbol, such as a newline, is text.

    :raises UcllmError: ``tokenizer.eos`` when the model has no such piece.
    """
    candidates = model.names(CONTROL) + model.names(USER_DEFINED)
    roles: dict[str, Any] = {"unk_token": model.pieces[model.unk_id].text}
    if eos_token is not None and eos_token not in candidates:
        raise UcllmError(
            "tokenizer.eos",
            _("The tokenizer has no symbol {name} to end a text with.").format(name=eos_token),
            hint=_("Symbols it has: {names}").format(names=" ".join(n for n in candidates if n.isprintable())),
        )
    eos = eos_token if eos_token is not None else next((n for n in _EOS if n in candidates), None)
    if eos is not None:
        roles["eos_token"] = eos
    for role, names in _ROLES.items():
        found = next((n for n in names if n in candidates), None)
        if found is not None:
            roles[role] = found
    if "pad_token" not in roles and eos is not None:
        roles["pad_token"] = eos
    looks = {n for n in candidates if _LOOKS_SPECIAL.fullmatch(n)} | set(model.names(CONTROL))
    rest = [n for n in candidates if n in looks and n not in roles.values()]
    if rest:
        roles["additional_special_tokens"] = rest
    return roles


def write_hf_tokenizer(
    model: Path,
    folder: Path,
    *,
    model_max_length: int,
    eos_token: str | None = None,
    chat_template: str | None = None,
) -> None:
    """Write the tokenizer of a model folder: what ``AutoTokenizer.from_pretrained(folder)`` needs, and the original.

    ``tokenizer.json``, ``tokenizer_config.json``, ``special_tokens_map.json``, ``tokenizer.model`` (a copy of
    ``model``) and, when given, ``chat_template.jinja``. ``folder`` is made when missing; other files in it stay.

    :param model_max_length: the model's positions, in tokens.
    :param eos_token: see :func:`special_tokens`; a chat model may end on another symbol than its base model.
    :param chat_template: a Jinja template, as transformers understands it.
    :raises UcllmError: when the model cannot be written exactly; nothing is written then.
    """
    read = read_model(model)
    roles = special_tokens(read, eos_token=eos_token)
    content = tokenizer_json(read)
    ids = {piece.text: i for i, piece in enumerate(read.pieces)}
    named = [n for key, n in roles.items() if key != "additional_special_tokens"]
    special = dict.fromkeys([*named, *roles.get("additional_special_tokens", [])])
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        # The class both generations of transformers read as "use tokenizer.json as it is", fast or not.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
        **roles,
        "added_tokens_decoder": {
            str(ids[name]): {"content": name, **flags} for name in sorted(special, key=lambda n: ids[n])
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "tokenizer.json", content)
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", roles)
    if model.resolve() != (folder / "tokenizer.model").resolve():
        shutil.copyfile(model, folder / "tokenizer.model")
    template = folder / "chat_template.jinja"
    if chat_template is not None:
        template.write_text(chat_template, encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
