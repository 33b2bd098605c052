"""Measures of pictures, with a descriptor and training images whose cosines are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from toys import KnownImages

from nemo_kit import effects, lab, metrics
from nemo_kit.originals import TrainingImages

RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 200


def solid(*colours: np.ndarray, side: int = 64) -> np.ndarray:
    """Pictures of one colour each, uint8 [N, side, side, 3]."""
    return np.stack([np.broadcast_to(c, (side, side, 3)) for c in colours]).astype(np.uint8)


@pytest.fixture(autouse=True)
def _known_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lab of two training images, one red and one green, whose descriptor is the mean colour."""

    def descriptor(images: np.ndarray) -> torch.Tensor:
        assert images.shape[1:] == (64, 64, 3)
        vectors = torch.from_numpy(images.reshape(len(images), -1, 3).mean(axis=1))
        return torch.nn.functional.normalize(vectors, dim=1)

    monkeypatch.setattr(lab, "training_images", lambda: (["red", "green"], solid(RED, GREEN)))
    monkeypatch.setattr(lab, "descriptor", lambda: descriptor)
    clip = SimpleNamespace(name="counter", align=lambda shots, prompt: np.arange(len(shots)) / 10)
    monkeypatch.setattr(effects.metrics, "load_clip", lambda: clip)


def generated() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": ["red", "red", "green", "green"],
            "seed": [101, 102] * 2,
            "image": list(solid(RED, BLUE, GREEN, GREEN)),
        }
    )


def test_picture_seeds_are_none_of_detection_s() -> None:
    assert effects.picture_seeds(3) == [101, 102, 103]
    assert not set(effects.picture_seeds(50)) & set(range(1, 101))


def test_pictures_follow_the_prompts_asked_for() -> None:
    got = effects.pictures(generated(), ["green", "red"])
    assert got.shape == (2, 2, 64, 64, 3)
    assert got[:, :, 0, 0].tolist() == [[[0, 200, 0]] * 2, [[200, 0, 0], [0, 0, 200]]]
    assert effects.pictures(generated(), ["red"], most=1).shape[1] == 1
    with pytest.raises(ValueError, match=r"no pictures of 1 prompts, e\.g\. 'blue'"):
        effects.pictures(generated(), ["red", "blue"])


def test_prompts_without_pictures_in_a_frame_are_left_out() -> None:
    rows = pd.DataFrame({"prompt": ["green", "blue", "red"], "group": "VM"}, index=[4, 5, 6])
    made = generated()
    greens = made[made["prompt"] == "green"]
    assert effects.with_pictures(rows, made)["prompt"].tolist() == ["green", "red"]
    kept = effects.with_pictures(rows, made, greens)
    assert (kept["prompt"].tolist(), kept.index.tolist()) == (["green"], [0])
    assert effects.with_pictures(rows[:0], made).empty
    with pytest.raises(ValueError, match=r"in all 2 frames, of 2 prompts none .* e\.g\. 'blue'"):
        effects.with_pictures(rows[1:], made, greens)


def test_training_images_are_all_there_or_none() -> None:
    known = TrainingImages()
    assert known.of(["green", "red"])[:, 0, 0].tolist() == [[0, 200, 0], [200, 0, 0]]
    assert known.of(["red", "blue"]) is None
    assert known.one("red")[0, 0].tolist() == [200, 0, 0]
    assert known.one("blue") is None


def test_pictures_of_another_size_are_looked_at_resized() -> None:
    assert effects.look(solid(RED, side=128)) == pytest.approx(np.array([[1, 0, 0]]))


def test_by_seed() -> None:
    got = effects.by_seed("red", solid(RED, RED), solid(RED, BLUE), [101, 102])
    assert got["seed"].tolist() == [101, 102]
    assert got["copy_before"].tolist() == pytest.approx([1, 1])
    assert got["copy_after"].tolist() == pytest.approx([1, 0])
    assert got["same_seed"].tolist() == pytest.approx([1, 0])
    unknown = effects.by_seed("blue", solid(RED), solid(RED), [101])
    assert unknown["copy_before"].isna().all()


def test_copying_by_hand() -> None:
    rows = pd.DataFrame({"prompt": ["red", "green"], "group": ["VM", "TM"]})
    before = np.stack([solid(RED, RED, RED), solid(GREEN, GREEN, RED)])
    after = np.stack([solid(BLUE, GREEN, RED), solid(GREEN, GREEN, RED)])
    got = effects.copying(rows, before, after).set_index("prompt")
    assert got.loc["red", ["orig_before", "orig_after", "gen"]].tolist() == pytest.approx([1, 0, 0])
    assert got.loc["red", ["diversity_before", "diversity_after"]].tolist() == pytest.approx([1, 0])
    assert got.loc["green", ["orig_before", "gen"]].tolist() == pytest.approx([1, 1])
    assert got["alignment_after"].tolist() == pytest.approx([0.1, 0.1])
    assert got["above_before"].tolist() == pytest.approx([1, 2 / 3])
    assert set(got["embedder"]) == {"lab descriptor"}
    assert set(got["protocol"]) == {"64 square, bicubic"}
    assert set(got["clip_model"]) == {"counter"}


def test_copying_by_another_network() -> None:
    """One that sees no colour finds every picture alike."""
    network = metrics.Embedder("blind", "closed", lambda images: np.ones((len(images), 2)))
    clip = SimpleNamespace(name="mine", align=lambda shots, prompt: np.full(len(shots), 0.5))
    rows = pd.DataFrame({"prompt": ["red"], "group": ["VM"]})
    shots = solid(RED, GREEN)[None]
    blue = KnownImages(red=solid(BLUE)[0])
    got = effects.copying(rows, shots, shots, blue, network, clip).iloc[0]
    assert (got["orig_after"], got["gen"]) == (pytest.approx(1), pytest.approx(1))
    assert (got["embedder"], got["protocol"], got["clip_model"]) == ("blind", "closed", "mine")
    assert got["alignment_before"] == 0.5


def test_summary_names_the_network_and_tells_both_ways() -> None:
    rows = pd.DataFrame({"prompt": ["red", "red!", "green"], "group": ["VM"] * 3})
    shots = np.stack([solid(RED, RED), solid(GREEN, RED), solid(GREEN, GREEN)])
    known = KnownImages(**{"red": solid(RED)[0], "red!": solid(RED)[0], "green": solid(GREEN)[0]})
    got = effects.summary(effects.copying(rows, shots, shots, known), True)
    counts = got[got["measure"] == "orig_before"].set_index("kept")["prompts"]
    assert counts.to_dict() == {"all": 3, "without near duplicates": 2}
    assert set(got["protocol"]) == {"64 square, bicubic"}


def test_copying_without_training_images_or_a_second_seed() -> None:
    rows = pd.DataFrame({"prompt": ["x"], "group": ["VM"]})
    got = effects.copying(rows, solid(RED)[None], solid(RED)[None], None).iloc[0]
    assert np.isnan(got["orig_before"])
    assert np.isnan(got["diversity_after"])
    assert got["gen"] == pytest.approx(1)


def test_summary_leaves_out_what_is_unknown() -> None:
    measured = pd.DataFrame(
        {"prompt": list("abc"), "group": ["VM", "VM", "TM"], "gen": [0.2, 0.4, 0.9], "orig": np.nan}
    )
    got = effects.summary(measured)
    assert got[["group", "measure", "prompts", "median", "mad"]].to_numpy().tolist() == [
        ["VM", "gen", 2, pytest.approx(0.3), pytest.approx(0.1)], ["TM", "gen", 1, 0.9, 0]
    ]  # fmt: skip
