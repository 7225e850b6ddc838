"""A stand-in for llm-jp-sft's ``train.py``: its words, what it reads and what it leaves, with whatever Trainer is here.

Real: the Trainer, its checkpoints, the loss. Not: autocast, LoRA, DeepSpeed. A text with ``RAISE`` in it makes it fail.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

#: What the real one takes and this one has no use for.
IGNORED = ("--warmup_ratio", "--lr_scheduler_type", "--logging_nan_inf_filter", "--report_to", "--disable_tqdm")


def words() -> argparse.Namespace:
    """The words; any other than the real script's end it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name, kind in (("num_train_epochs", float), ("per_device_train_batch_size", int), ("learning_rate", float)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name in ("data_files", "model_name_or_path", "output_dir", "instruction_template", "response_template"):
        parser.add_argument(f"--{name}", required=True)
    for name in IGNORED:
        parser.add_argument(name)
    for name in ("bf16", "use_cpu"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--max_seq_length", type=int, default=2048)
    parser.add_argument("--save_strategy", default="no")
    parser.add_argument("--save_steps", type=float, default=500)
    parser.add_argument("--save_total_limit", type=int)
    parser.add_argument("--logging_steps", type=int, default=500)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def main() -> None:
    """Train and save."""
    asked = words()
    # By name, so that the type checker does not need the libraries in the test suite's own environment.
    transformers, collators = importlib.import_module("transformers"), importlib.import_module("trl")
    texts = [json.loads(line)["text"] for line in Path(asked.data_files).read_text(encoding="utf-8").splitlines()]
    if any("RAISE" in text for text in texts):
        raise RuntimeError("the stand-in was told to fail")
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked.model_name_or_path)
    templates = [
        tokenizer.encode(each, add_special_tokens=False)[1:]
        for each in (asked.response_template, asked.instruction_template)
    ]
    collate = collators.DataCollatorForCompletionOnlyLM(
        response_template=templates[0], instruction_template=templates[1], tokenizer=tokenizer
    )

    class Print(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
            print({name: float(value) for name, value in logs.items()}, flush=True)

    torch = importlib.import_module("torch")
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(asked.model_name_or_path, **({"torch_dtype": torch.bfloat16} if asked.bf16 else {}))
    print("the weights are", next(model.parameters()).dtype)
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=asked.output_dir,
            num_train_epochs=asked.num_train_epochs,
            per_device_train_batch_size=asked.per_device_train_batch_size,
            gradient_accumulation_steps=asked.gradient_accumulation_steps,
            learning_rate=asked.learning_rate,
            save_strategy=asked.save_strategy,
            save_steps=asked.save_steps,
            save_total_limit=asked.save_total_limit,
            logging_steps=asked.logging_steps,
            logging_nan_inf_filter=False,
            seed=asked.seed,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=[{"input_ids": tokenizer(each)["input_ids"][: asked.max_seq_length]} for each in texts],
        data_collator=collate,
        callbacks=[Print],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
