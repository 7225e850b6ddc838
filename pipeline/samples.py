"""Training samples and the held-out tail of an indexed dataset, made on the fly from the memory map.

Sample ``i`` depends on ``(seed, i)`` and the corpus alone, so a run continues anywhere without replaying what it read.
The scheme is Megatron's (``megatron/data/gpt_dataset.py``): each epoch concatenates the documents in an order of its
own and cuts windows of ``seq_length + 1`` tokens that share one token, so that every token but the first is predicted;
the windows come in an order of its own too. What is left at the end of an epoch, less than a window, is left out; it is
other text each time, and so are the cuts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.indexed_dataset import IndexedDataset

#: Tokens counted in one go, so that memory does not grow with the corpus.
BLOCK = 1 << 22


@dataclass(frozen=True)
class Part:
    """A run of documents: ``tokens`` [n], and ``bounds`` [documents + 1], where in ``tokens`` each begins and ends."""

    tokens: Any
    bounds: Any


def split(dataset: IndexedDataset, validation_fraction: float) -> tuple[Part, Part]:
    """The documents to train on, and the last ``validation_fraction`` of them, held out.

    Any fraction above 0 holds out at least one document; 0 holds out none.
    """
    import numpy as np

    documents = len(dataset.documents) - 1
    held_out = max(1, round(documents * validation_fraction)) if validation_fraction > 0 else 0
    ends: Any = np.append(dataset.pointers, len(dataset.tokens) * dataset.dtype.itemsize)
    bounds = ends[dataset.documents] // dataset.dtype.itemsize
    first = max(0, documents - held_out)
    cut = int(bounds[first])
    training = Part(dataset.tokens[:cut], bounds[: first + 1])
    return training, Part(dataset.tokens[cut:], bounds[first:] - cut)


class TrainingSamples:
    """``samples[i]``: the window of sample ``i``, int64 [seq_length + 1], for every ``i >= 0``."""

    def __init__(self, part: Part, seq_length: int, seed: int) -> None:
        """``part`` must hold at least ``seq_length + 1`` tokens."""
        self._part = part
        self._length = seq_length
        self._seed = seed
        #: Windows of one epoch.
        self.per_epoch = (len(part.tokens) - 1) // seq_length
        self._epoch = lru_cache(maxsize=1)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> tuple[Any, Any, Any]:
        """``documents`` in their order, ``ends`` of each in the concatenation, ``windows`` in their order."""
        import numpy as np

        # RandomState is frozen: a checkpoint goes on with the same samples under any version of NumPy.
        source = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self._seed, epoch])))
        documents = source.permutation(len(self._part.bounds) - 1)
        return documents, np.cumsum(np.diff(self._part.bounds)[documents]), source.permutation(self.per_epoch)

    def __getitem__(self, index: int) -> Any:
        """The tokens of sample ``index``."""
        import numpy as np

        documents, ends, windows = self._epoch(index // self.per_epoch)
        start = int(windows[index % self.per_epoch]) * self._length
        pieces = []
        missing = self._length + 1
        place = int(np.searchsorted(ends, start, side="right"))
        while missing:
            document = int(documents[place])
            begin, end = int(self._part.bounds[document]), int(self._part.bounds[document + 1])
            begin = max(begin, end - (int(ends[place]) - start))
            piece = self._part.tokens[begin : min(end, begin + missing)]
            pieces.append(piece)
            missing -= len(piece)
            start += len(piece)
            place += 1
        return np.concatenate(pieces).astype(np.int64)


def tail_windows(tokens: Any, seq_length: int) -> Iterator[Any]:
    """All of ``tokens`` in order: windows of ``seq_length + 1`` that share one token, the last one shorter."""
    import numpy as np

    for start in range(0, len(tokens) - 1, seq_length):
        yield np.asarray(tokens[start : start + seq_length + 1], dtype=np.int64)


def count(tokens: Any, vocab_size: int) -> Any:
    """How often each token occurs, int64 [``vocab_size``, or more if there are larger tokens]."""
    import numpy as np

    counts: Any = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), BLOCK):
        part = np.bincount(tokens[start : start + BLOCK], minlength=len(counts))
        part[: len(counts)] += counts
        counts = part
    return counts


def entropy(counts: Any) -> float:
    """The entropy of the distribution that ``counts`` are proportional to, in nats."""
    total = int(counts.sum())
    seen = counts[counts > 0]
    return math.log(total) - float((seen * _log(seen)).sum()) / total


def unigram_loss(training: Any, held_out: Any) -> float:
    """The mean loss in nats a token of a model that knows only how frequent tokens are in ``training``.

    Both are counts of the same length. Every token of the vocabulary counts once more, as unseen ones need a chance.
    """
    chances = _log(training + 1) - math.log(int(training.sum()) + len(training))
    return -float((held_out * chances).sum()) / int(held_out.sum())


def _log(values: Any) -> Any:
    import numpy as np

    return np.log(values.astype(np.float64))
