"""`score(sets)`: batching of sets × seeds over a drawn function, without a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_kit.localization import Score
from nemo_kit.localization.differences import Differences
from nemo_kit.memory import BatchSize
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import SimilaritySettings
from nemo_kit.similarity import noise_differences, similarity

SMALL = SimilaritySettings(kernel=3)
SETS = [NeuronSet(), NeuronSet({1: [0]}), NeuronSet({1: [0], 2: [3]}), NeuronSet({7: [1, 2]})]
torch.manual_seed(0)
BASE = torch.randn(3, 4, 16, 16)
OTHER = torch.randn(3, 4, 16, 16)


class Drawer(Differences):
    """Blocking n neurons mixes in n parts of unrelated noise; noise are places in `BASE`."""

    def __init__(self) -> None:
        self.calls, self._empty = [], None

    def __call__(self, noise: Tensor, embeddings: Tensor, sets: list[NeuronSet]) -> Tensor:
        assert len(noise) == len(embeddings) == len(sets)
        self.calls.append(len(noise))
        parts = torch.tensor([float(len(one)) for one in sets])[:, None, None, None]
        mixed = BASE[noise] + parts * OTHER[noise]
        return noise_differences(mixed, torch.zeros_like(mixed))


def scorer(
    size: int = 32, settings: SimilaritySettings = SMALL, drawer: Drawer | None = None
) -> tuple[Score, Drawer]:
    drawer, text = drawer or Drawer(), torch.zeros(1, 4, 16)
    unblocked = noise_differences(BASE, torch.zeros_like(BASE))
    return Score(drawer, torch.arange(3), text, unblocked, settings, BatchSize(size)), drawer


def test_the_score_is_the_maximum_over_seeds() -> None:
    score, drawer = scorer()
    for one, per_seed in zip(SETS, score.per_seed(SETS), strict=True):
        drawn = drawer(torch.arange(3), torch.zeros(3), [one] * 3)
        expected = similarity(score.unblocked, drawn, SMALL)
        torch.testing.assert_close(per_seed, expected)
        torch.testing.assert_close(score([one]), expected.max()[None])
    assert score(SETS)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("settings", [SMALL, SimilaritySettings(kernel=3, data_range="batch")])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_any_batch_size_gives_the_same(batch_size: int, settings: SimilaritySettings) -> None:
    whole, _ = scorer(settings=settings)
    score, drawer = scorer(batch_size, settings)
    torch.testing.assert_close(score(SETS), whole(SETS))
    assert max(drawer.calls) <= batch_size
    assert score.samples == sum(drawer.calls) == 3 * 3  # the empty set blocks nothing: not drawn


def test_sets_share_a_call() -> None:
    score, drawer = scorer(9)
    score(SETS)
    assert drawer.calls == [9]


def test_nothing_is_drawn_twice() -> None:
    score, drawer = scorer()
    first = score(SETS[1:3])
    assert score(SETS)[1:3].equal(first)
    assert score.exact(SETS[1]) == first[0]
    assert drawer.calls == [6, 3]
    assert (score.samples, score.asked) == (9, 4)


def test_one_seed_above_is_enough() -> None:
    score, drawer = scorer()
    per_seed = score.per_seed(SETS)
    best = int(per_seed[1].argmax())
    limit = per_seed[1].median().item()
    fresh, drawer = scorer()
    fresh._last[best] = 1.0  # the seed that was above last is asked first
    assert fresh.above([SETS[1]], limit) == [True]
    assert drawer.calls == [1]
    assert fresh.above([SETS[1]], 0.999) == [False]
    assert drawer.calls == [1, 2]  # below needs all seeds, of which one is known
    assert fresh.above([SETS[1]], 0.999, watch=[best]) == [False]
    assert sum(drawer.calls) == 3


def test_sets_behind_the_first_above_are_asked_of_one_seed() -> None:
    score, drawer = scorer()
    chain = [SETS[3], SETS[1], SETS[2]]
    lowest = score.per_seed(chain).min(dim=1).values
    fresh, drawer = scorer()
    assert fresh.first_above(chain, lowest[1].item() - 1e-6) == 1
    assert drawer.calls == [3, 2]  # the leading seed of all, then the rest of the first alone
    assert fresh.first_below([SETS[1], SETS[3]], lowest[1].item() - 1e-6) == 1
    assert drawer.calls == [3, 2]


def test_memory_that_runs_out_halves_the_batch() -> None:
    class Small(Drawer):
        def __call__(self, noise: Tensor, *given: Any) -> Tensor:
            if len(noise) > 2:
                raise torch.OutOfMemoryError("tried to allocate too much")
            return super().__call__(noise, *given)

    score, drawer = scorer(8, drawer=Small())
    whole, _ = scorer()
    with pytest.warns(RuntimeWarning, match="out of memory with .* denoiser samples") as told:
        torch.testing.assert_close(score(SETS), whole(SETS))
    assert (score.batch.size, score.samples, sum(drawer.calls)) == (2, 9, 9)
    assert "with 8 denoiser samples a call; going on with 4" in str(told[0].message)
    assert sum("out of memory" in str(one.message) for one in told) == 2


def test_no_sets() -> None:
    score, _ = scorer()
    assert score([]).shape == (0,)
    assert score.samples == 0


def test_nan_is_refused() -> None:
    class Nan(Drawer):
        def __call__(self, noise: Tensor, *given: Any) -> Tensor:
            return super().__call__(noise, *given) * torch.nan

    with pytest.raises(ValueError, match="became NaN or infinite"):
        scorer(drawer=Nan())[0](SETS)
