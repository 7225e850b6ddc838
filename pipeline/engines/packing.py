"""Several conversations in one row of a batch, each of which sees itself alone and is counted as if it stood alone.

trl packs, and its collator counts each conversation's positions from 0. Given these and no attention mask,
transformers finds where conversations begin and masks the others (``masking_utils.find_packed_sequence_indices``), with
any kind of attention; trl's own way is to flatten a whole batch into one row, which is for flash attention. Whether a
model really does so is measured before it is trained: :func:`check_apart`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

from pipeline.chat import IGNORED
from pipeline.errors import UcllmError
from pipeline.i18n import _

if TYPE_CHECKING:
    from pipeline.chat import Example

#: Rows of examples to a batch, and a batch to the loss of each of its answer tokens in nats, in their order.
Collate = Callable[[Sequence[Mapping[str, Any]]], "dict[str, Any]"]
Losses = Callable[["dict[str, Any]"], Any]
#: By how many nats the loss of a token may differ, packed and alone. In fp32 both are equal to about 1e-6.
TOLERANCE = 1e-4


def dataset(examples: Sequence[Example]) -> Any:
    """The examples as a dataset, a row each: ``input_ids`` and ``labels``."""
    from datasets import Dataset

    return Dataset.from_dict({key: [getattr(each, key) for each in examples] for key in ("input_ids", "labels")})


def pack(rows: Any, length: int) -> Any:
    """The rows of :func:`dataset` in fewer of at most ``length`` tokens; ``seq_lengths`` are the parts of each."""
    import trl

    return trl.pack_dataset(rows, length, "bfd")


def collators(pad_token_id: int) -> tuple[Collate, Collate]:
    """What makes a batch of single rows, and what makes one of packed rows."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    with_positions = DataCollatorForLanguageModeling(pad_token_id, return_position_ids=True)

    def packed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = with_positions(list(rows))
        # transformers looks for conversations only where no mask is given. Padding is last: nothing sees it.
        del batch["attention_mask"]
        # No conversation predicts how the next one begins.
        batch["labels"][batch["position_ids"] == 0] = IGNORED
        return batch

    return DataCollatorForLanguageModeling(pad_token_id), packed


def check_apart(losses: Losses, rows: Any, alone: Collate, packed: Collate) -> None:
    """Compare the loss of each answer token in the first row of several conversations with what it is alone.

    Raises :class:`UcllmError` when they differ: the model takes no positions, or lets a conversation see another.
    """
    row = next((each for each in rows if len(each["seq_lengths"]) > 1), None)
    if row is None:
        return
    parts, start = [], 0
    for length in row["seq_lengths"]:
        parts.append({key: row[key][start : start + length] for key in ("input_ids", "labels")})
        start += length
    why = _("It takes no positions of tokens.")
    try:
        together = losses(packed([row]))
        separate = [losses(alone([each])) for each in parts]
    except (TypeError, ValueError) as error:
        raise _unfit(f"{why} {error}".partition("\n")[0]) from error
    import torch

    furthest = float((together - torch.cat(separate)).abs().max())
    if not furthest <= TOLERANCE:  # also when it is NaN
        why = _("The loss of a token is {difference:.2g} nats off when other conversations stand before it.")
        raise _unfit(why.format(difference=furthest))


def _unfit(why: str) -> UcllmError:
    what = _("This model does not keep the conversations of a packed row apart.")
    return UcllmError("finetune.packing", what, why, _("Use `--set finetune.packing=false`."))
