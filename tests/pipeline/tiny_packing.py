"""Shows that packed conversations are counted as if they stood alone: run by the environment's Python, not the tests'.

python tiny_packing.py BASE OUTPUT.json  →  for each kind of attention the losses of answer tokens alone and packed;
``rows``, how many conversations lie in each; ``refused``, what :func:`check_apart` says of models that do not do it.
"""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

LENGTH = 96
#: Questions and answers of different lengths, so that rows hold different numbers of them and end in padding.
TALKS = [("who " * (1 + n % 5), "he ate it " * (1 + n % 3)) for n in range(17)]


def main(base: Path, output: Path) -> None:
    # By name, so that the type checker does not need the libraries in the test suite's own environment.
    torch, transformers = map(importlib.import_module, ("torch", "transformers"))
    chat, packing, engine, errors = map(
        importlib.import_module,
        ("pipeline.chat", "pipeline.engines.packing", "pipeline.engines.trl_engine", "pipeline.errors"),
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = chat.chat_template(tokenizer)
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in TALKS]
    rows = packing.dataset([chat.encode(each, tokenizer, LENGTH) for each in talks])
    packed_rows = packing.pack(rows, LENGTH)
    alone, packed = packing.collators(3)

    def counted(collate: Any, model: Any, source: Any, size: int) -> list[float]:
        """The losses of all answer tokens, sorted: packing changes the order of conversations."""
        listed = [source[n] for n in range(len(source))]
        parts = (listed[n : n + size] for n in range(0, len(listed), size))
        return sorted(float(loss) for part in parts for loss in engine.answer_losses(model, collate(part)))

    def refusal(model: Any, collate: Any) -> list[str]:
        try:
            packing.check_apart(partial(engine.answer_losses, model), packed_rows, alone, collate)
        except errors.UcllmError as error:
            return [error.problems[0].code, error.problems[0].why]
        return []

    def leaking(source: Any) -> Any:
        """As packed, but every token sees all that stand before it."""
        batch = packed(source)
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}

    shown: dict[str, Any] = {"rows": [len(each["seq_lengths"]) for each in packed_rows], "losses": {}, "refused": {}}
    for kind in ("eager", "sdpa"):
        model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation=kind)
        shown["losses"][kind] = [counted(alone, model, rows, 1), counted(packed, model, packed_rows, 3)]
        shown["refused"][kind] = refusal(model, packed)
        shown["refused"][f"{kind} leaking"] = refusal(model, leaking)
    torch.manual_seed(1)
    size = {"vocab_size": 384, "hidden_size": 32, "n_layer": 1, "n_head": 2}
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(**size))
    shown["refused"]["bloom"] = refusal(bloom, packed)
    llama = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = transformers.LlamaConfig(vocab_size=384, hidden_size=32, max_position_embeddings=LENGTH, **llama)
    shown["refused"]["llama"] = refusal(transformers.LlamaForCausalLM(shape), packed)
    output.write_text(json.dumps(shown), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
