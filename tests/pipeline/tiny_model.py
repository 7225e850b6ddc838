"""Makes a small SentencePiece model and a random GPT-2 in a folder: run by the environment's Python, not the tests'.

python tiny_model.py FOLDER  →  FOLDER/tokenizer.model, FOLDER/model/{config.json, model.safetensors}, and
FOLDER/small_model, which has too few rows for the tokenizer.
"""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the environment that runs this file has no pytest
    import pytest

WORDS = (
    "once upon a time there was boy who hurried to the town and ate forty dumplings in hot spring water while "
    "teacher said nothing about it but laughed at him because he had come from Tokyo with little money"
)


def main(folder: Path) -> None:
    # By name, so that the type checker does not need the libraries in the test suite's own environment.
    sentencepiece, torch, transformers = map(importlib.import_module, ("sentencepiece", "torch", "transformers"))
    words = WORDS.split()
    sentences = [" ".join(words[(i * k) % len(words)] for k in range(1, 9)) for i in range(1, 200)]
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=content,
        model_type="unigram",
        vocab_size=330,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        user_defined_symbols=["<s>", "</s>", "<pad>", "<CLS>", "<SEP>", "<EOD>", "<MASK>", "\n"],
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        hard_vocab_limit=False,
        # Rules for Unicode grow with the library's version; what they need is tested with the tokenizer.
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(content.getvalue())
    torch.manual_seed(1)
    # The configuration of a pretraining that knows nothing of the tokenizer: 50256 ends a text.
    for rows, name in ((384, "model"), (128, "small_model")):
        shape = transformers.GPT2Config(vocab_size=rows, n_positions=64, n_embd=32, n_layer=2, n_head=2)
        transformers.GPT2LMHeadModel(shape).save_pretrained(folder / name)


def shared_folder(python: Path, factory: pytest.TempPathFactory) -> Path:
    """The folder for all tests of a session, made once. Tests copy what they change."""
    folder = factory.getbasetemp() / "tiny"
    if not folder.exists():
        subprocess.run([python, "-P", __file__, folder], check=True, capture_output=True)
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]))
