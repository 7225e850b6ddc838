"""Makes a base model to fine-tune and shows how chats become tokens: run by the environment's Python, not the tests'.

python tiny_chat.py FOLDER TOKENIZER.model  →  FOLDER/base (a random GPT-2 of one layer with the tokenizer),
FOLDER/gpt2 (the same, its tokenizer a byte-level BPE that begins texts with <s>), FOLDER/tokens.json (:func:`show`)
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

POSITIONS = 192
CONVERSATIONS: list[list[tuple[str, str]]] = [
    [("user", "why did he hurry"), ("assistant", "because he had little money")],
    [("user", "  名前は？ "), ("assistant", "I'm  a\n\ncat 12.")],
    [
        ("system", "be kind"),
        ("user", "who"),
        ("assistant", "a boy"),
        ("user", "<EOD> why"),
        ("assistant", "said nothing"),
    ],
]


def show(tokenizer: Any, conversation: list[tuple[str, str]], chat: Any) -> dict[str, Any]:
    """The example at several lengths, the ids of the whole by the template, and of the prompt before each answer."""
    messages = [{"role": role, "content": content} for role, content in conversation]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    prompts = [
        tokenizer.apply_chat_template(messages[:i], tokenize=True, return_dict=False, add_generation_prompt=True)
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    lengths = (10_000, len(whole), len(whole) - 1, len(prompts[0]))
    examples = [chat.encode(messages, tokenizer, length) for length in lengths]
    return {
        "text": tokenizer.apply_chat_template(messages, tokenize=False),
        "whole": whole,
        "prompts": prompts,
        "answers": [tokenizer.decode([i for i in e.labels if i != chat.IGNORED]) for e in examples],
        "examples": [[e.input_ids, e.labels, e.was_cut, e.learned] for e in examples],
        "eos": tokenizer.eos_token,
    }


def main(folder: Path, model_file: Path) -> None:
    # By name, so that the type checker does not need the libraries in the test suite's own environment.
    torch, transformers, tokenizers = map(importlib.import_module, ("torch", "transformers", "tokenizers"))
    chat, writer = map(importlib.import_module, ("pipeline.chat", "pipeline.hf_tokenizer"))
    torch.manual_seed(1)
    shape = transformers.GPT2Config(
        vocab_size=384,
        n_positions=POSITIONS,
        n_embd=32,
        n_layer=1,
        n_head=2,
        # Not the tokenizer's: 1, 6 and 3.
        bos_token_id=0,
        eos_token_id=5,
        pad_token_id=4,
    )
    model = transformers.GPT2LMHeadModel(shape)
    for name in ("base", "gpt2"):
        model.save_pretrained(folder / name)
    writer.write_hf_tokenizer(model_file, folder / "base", model_max_length=POSITIONS)
    bpe = tokenizers.ByteLevelBPETokenizer()
    text = "why did he hurry because he had little money " * 9
    bpe.train_from_iterator([text], vocab_size=300, special_tokens=["<s>", "</s>"])
    begun = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))])
    bpe._tokenizer.post_processor = begun
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{{ 'an older template' }}"
    fast.save_pretrained(folder / "gpt2")
    shown = {}
    for name in ("base", "gpt2"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
        tokenizer.chat_template = chat.chat_template(tokenizer)
        shown[name] = [show(tokenizer, each, chat) for each in CONVERSATIONS]
    (folder / "tokens.json").write_text(json.dumps(shown), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
