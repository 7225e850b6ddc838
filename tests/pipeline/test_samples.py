"""Training samples: each token once an epoch, the same wherever one begins, cut elsewhere each epoch."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")

from pipeline.indexed_dataset import IndexedDataset, Writer  # noqa: E402  after the skip
from pipeline.samples import TrainingSamples, count, entropy, split, tail_windows, unigram_loss  # noqa: E402

LENGTHS = (5, 1, 17, 8, 30, 2, 9, 11, 3, 14)


@pytest.fixture
def dataset(tmp_path: Path) -> IndexedDataset:
    """Documents of odd lengths, whose tokens are 1, 2, 3… through the whole corpus."""
    numbers = itertools.count(1)
    with Writer(tmp_path / "data", "<u2") as writer:
        for length in LENGTHS:
            writer.add_document(list(itertools.islice(numbers, length)))
        writer.finish()
    return IndexedDataset(tmp_path / "data")


#: Samples 0 and 37 of seed 1234.
FIRST = [16, 17, 18, 19, 20, 21, 22, 23, 73]
LATER = [47, 48, 49, 50, 51, 52, 53, 54, 55]


def epoch(samples: TrainingSamples, number: int) -> list[list[int]]:
    return [samples[number * samples.per_epoch + index].tolist() for index in range(samples.per_epoch)]


def test_held_out_documents_are_the_last_and_never_sampled(dataset: IndexedDataset) -> None:
    training, held_out = split(dataset, 0.2)
    assert held_out.tokens.tolist() == list(range(84, 101))
    assert training.tokens.tolist() == list(range(1, 84))
    samples = TrainingSamples(training, 8, seed=1)
    assert max(max(window) for window in epoch(samples, 0) + epoch(samples, 1)) < 84


def test_a_small_fraction_still_holds_out_a_document_and_none_holds_out_none(dataset: IndexedDataset) -> None:
    assert len(split(dataset, 0.001)[1].tokens) == 14
    assert len(split(dataset, 0.0)[1].tokens) == 0
    assert len(split(dataset, 0.0)[0].tokens) == 100


@pytest.mark.parametrize("length", [1, 2, 7, 8, 60, 82])
def test_an_epoch_predicts_each_token_at_most_once(dataset: IndexedDataset, length: int) -> None:
    training, _held_out = split(dataset, 0.2)
    samples = TrainingSamples(training, length, seed=3)
    windows = epoch(samples, 0)
    assert samples.per_epoch == (83 - 1) // length
    assert all(len(window) == length + 1 for window in windows)
    predicted = Counter(token for window in windows for token in window[1:])
    assert max(predicted.values()) == 1
    assert len(predicted) == samples.per_epoch * length
    ends = set(np.cumsum(LENGTHS).tolist())
    following = [(a, b) for window in windows for a, b in itertools.pairwise(window)]
    assert all(b == a + 1 or a in ends for a, b in following)
    assert all(b - 1 in ends | {0} for a, b in following if a in ends)


def test_a_sample_depends_on_seed_and_index_alone(dataset: IndexedDataset) -> None:
    training, _held_out = split(dataset, 0.2)
    forward = TrainingSamples(training, 8, seed=5)
    ahead = [forward[index].tolist() for index in range(25)]
    backward = TrainingSamples(training, 8, seed=5)
    assert [backward[index].tolist() for index in reversed(range(25))] == ahead[::-1]
    assert [TrainingSamples(training, 8, seed=6)[index].tolist() for index in range(25)] != ahead


def test_each_epoch_cuts_elsewhere(dataset: IndexedDataset) -> None:
    samples = TrainingSamples(split(dataset, 0.2)[0], 8, seed=5)
    first, second = ({tuple(window) for window in epoch(samples, number)} for number in (0, 1))
    assert len(first & second) < len(first) / 2


def test_samples_stay_the_same_for_ever(dataset: IndexedDataset) -> None:
    """A checkpoint continues with the samples it began with; a change here needs a new ``StagePlan.format``."""
    samples = TrainingSamples(split(dataset, 0.2)[0], 8, seed=1234)
    assert samples[0].tolist() == FIRST
    assert samples[37].tolist() == LATER


@pytest.mark.parametrize("length", [1, 4, 16, 17, 40])
def test_the_tail_is_predicted_whole(length: int) -> None:
    tokens = np.arange(17, dtype=np.uint16)
    windows = [window.tolist() for window in tail_windows(tokens, length)]
    assert [token for window in windows for token in window[1:]] == list(range(1, 17))
    assert all(len(window) == length + 1 for window in windows[:-1])


def test_statistics_against_their_definitions() -> None:
    tokens: Any = np.array([0, 0, 1, 3], dtype=np.uint16)
    counts = count(tokens, 4)
    assert counts.tolist() == [2, 1, 0, 1]
    assert entropy(counts) == pytest.approx(1.5 * math.log(2))
    # After one more of each of four: 3, 2, 1, 2 of 8.
    assert unigram_loss(counts, count(np.array([0, 2]), 4)) == pytest.approx(-(math.log(3 / 8) + math.log(1 / 8)) / 2)


def test_a_token_beyond_the_vocabulary_shows() -> None:
    assert len(count(np.array([9]), 4)) == 10
