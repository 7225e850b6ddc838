"""What Megatron-DeepSpeed prints while it trains (``megatron/training.py``: ``training_log``, ``save_checkpoint``)."""

from __future__ import annotations

import re
from typing import Any

_PAIR = re.compile(r"\s*([^|:]+?)\s*:\s*([-+0-9.eEnaif]+)\s*$")
_ITERATION = re.compile(r"\biteration\s+(\d+)/\s*(\d+) \|(.*)")
_VALIDATION = re.compile(
    r"\b(validation|test) loss at (?:iteration (\d+)|the end of training)\b.*?lm loss value: ([-+0-9.eEnaif]+)"
)
_SAVED = re.compile(r"successfully saved checkpoint at iteration\s+(\d+) to ")
_STOPPED = re.compile(r"\[exiting program after (receiving SIGTERM|[0-9.]+ minutes|)")
#: DeepSpeed's ``launcher/launch.py``, of the node whose process ended.
_DIED = re.compile(r"Process \d+ exits with return code = [-1-9]")
#: Megatron's names to ours.
_NAMES = {
    "lm loss": "loss",
    "learning rate": "learning_rate",
    "grad norm": "grad_norm",
    "loss scale": "loss_scale",
    "elapsed time per iteration (ms)": "milliseconds",
    "consumed tokens": "tokens",
    "samples per second": "samples_per_second",
    "tokens per gpu per second (tgs)": "tokens_per_second_per_gpu",
    "TFLOPs": "tflops",
    "number of skipped iterations": "skipped",
    "number of nan iterations": "not_finite",
}


def read(line: str) -> dict[str, Any] | None:
    """What a line of the log says, or ``None``.

    ``{"kind": "step", "step", "total", "loss", …}`` (the loss is the mean since the last such line, in nats),
    ``{"kind": "validation", "step", "loss"}``, ``{"kind": "saved", "step"}``, ``{"kind": "stopped", "by": "signal"}``
    (or ``"hours"``), ``{"kind": "died"}`` when a launcher tells that a process of its node did.
    """
    if found := _ITERATION.search(line):
        step, total, rest = found.groups()
        pairs = (_PAIR.match(part) for part in rest.split("|"))
        values = {_NAMES[pair[1]]: float(pair[2]) for pair in pairs if pair and pair[1] in _NAMES}
        return {"kind": "step", "step": int(step), "total": int(total), **values}
    if found := _VALIDATION.search(line):
        what, at, loss = found.groups()
        return {"kind": what, "step": int(at) if at else None, "loss": float(loss)}
    if found := _SAVED.search(line):
        return {"kind": "saved", "step": int(found[1])}
    if _DIED.search(line):
        return {"kind": "died"}
    if found := _STOPPED.search(line):
        return {"kind": "stopped", "by": "signal" if "SIGTERM" in found[1] else "hours"}
    return None
