"""A stand-in for trl 0.7.10's ``DataCollatorForCompletionOnlyLM``: later versions of trl have none."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

__version__ = "stand-in"


class DataCollatorForCompletionOnlyLM:
    """Pads a batch, and counts what lies between a response template and the next instruction template."""

    def __init__(self, response_template: list[int], instruction_template: list[int], tokenizer: Any) -> None:
        self.response, self.instruction, self.tokenizer = response_template, instruction_template, tokenizer

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        torch = importlib.import_module("torch")
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for row in rows:
            ids = list(row["input_ids"])
            missing = longest - len(ids)
            batch["input_ids"].append([*ids, *[self.tokenizer.pad_token_id] * missing])
            batch["attention_mask"].append([*[1] * len(ids), *[0] * missing])
            batch["labels"].append([*self.counted(ids), *[-100] * missing])
        return {name: torch.tensor(values) for name, values in batch.items()}

    def counted(self, ids: list[int]) -> list[int]:
        """``ids``, and -100 where the loss counts nothing."""
        answers, questions = self._places(ids, self.response), self._places(ids, self.instruction)
        labels = list(ids)
        if not answers or not questions:
            return [-100] * len(ids)
        for number, (start, place) in enumerate(zip(questions, answers)):
            first, end = (start if number else 0), place + len(self.response)
            labels[first:end] = [-100] * (end - first)
        if len(answers) < len(questions):
            labels[questions[-1] :] = [-100] * (len(ids) - questions[-1])
        return labels

    @staticmethod
    def _places(ids: list[int], template: list[int]) -> list[int]:
        return [n for n in range(len(ids)) if ids[n : n + len(template)] == template]
