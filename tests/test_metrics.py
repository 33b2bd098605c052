"""Metrics against numbers worked out by hand and against independent libraries."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nemo_kit import lab, metrics
from nemo_kit.metrics.distances import _frechet, _kernel
from nemo_kit.metrics.embedders import processor
from nemo_kit.neurons import NeuronSet

RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 200


def solid(*colours: np.ndarray) -> np.ndarray:
    """Pictures of one colour each, uint8 [N, 4, 4, 3]."""
    return np.stack([np.broadcast_to(c, (4, 4, 3)) for c in colours]).astype(np.uint8)


def mean_colour(images: np.ndarray) -> torch.Tensor:
    """A descriptor whose cosines can be worked out by hand: the mean colour, as a unit vector."""
    vectors = torch.from_numpy(images.reshape(len(images), -1, 3).mean(axis=1))
    return torch.nn.functional.normalize(vectors, dim=1)


# ------------------------------------------------------------------- copying and diversity


def test_copy_similarities_are_cosines_to_the_training_image() -> None:
    images = solid(RED, GREEN, RED + GREEN)
    got = metrics.copy_similarities(images, solid(RED)[0], mean_colour)
    assert got == pytest.approx([1, 0, np.sqrt(0.5)])
    assert metrics.sscd_orig(images, solid(RED)[0], mean_colour) == pytest.approx(np.sqrt(0.5))


def test_medians_of_an_even_number() -> None:
    """`torch.median`, by which the released metrics go, takes the lower of the middle two."""
    values = np.array([0.9, 0.1, 0.4, 0.2])
    assert metrics.median(values) == pytest.approx(0.3)
    assert metrics.median(values, "lower middle") == 0.2
    assert metrics.median(values[:3], "lower middle") == metrics.median(values[:3]) == 0.4
    assert metrics.median(values, "lower middle") == torch.tensor(values).median().item()
    with pytest.raises(ValueError, match="median must be one of middle two, lower middle; got"):
        metrics.median(values, "upper")  # type: ignore[arg-type]


def test_sscd_gen_pairs_images_of_the_same_seed() -> None:
    before, after = solid(RED, GREEN, BLUE), solid(RED, BLUE, GREEN)
    assert metrics.sscd_gen(after, before, mean_colour) == pytest.approx(0)
    assert metrics.sscd_gen(before, before, mean_colour) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"unmitigated .* got 2 for 3"):
        metrics.sscd_gen(after, before[:2], mean_colour)


def test_diversity_is_the_median_over_pairs_without_the_diagonal() -> None:
    # pairs: red-red 1, red-green 0, red-green 0
    assert metrics.diversity(solid(RED, RED, GREEN), mean_colour) == pytest.approx(0)
    assert metrics.diversity(solid(RED, RED), mean_colour) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 2 images to form a pair, got 1"):
        metrics.diversity(solid(RED), mean_colour)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
)
def test_pictures_of_another_kind_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 .*\[N, H, W, 3\].* got"):
        metrics.copy_similarities(images, solid(RED)[0], mean_colour)


# ------------------------------------------------------------------------------- alignment


@pytest.fixture(scope="module")
def tiny_clip() -> tuple:
    """A CLIP with random weights, 8 wide, a tokenizer that numbers letters, and preprocessing."""
    from transformers import CLIPConfig, CLIPModel

    common = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text = common | {"num_attention_heads": 2, "vocab_size": 32, "eos_token_id": 31}
    vision = common | {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    pixels = processor(size={"height": 8, "width": 8}, do_center_crop=False)
    return CLIPModel(config).eval(), Words(), pixels


class Words:
    """Letters as token numbers, padded with the end token, as a CLIP tokenizer returns them."""

    def __call__(self, texts: list[str], **_: object) -> object:
        from transformers import BatchEncoding

        width = max(map(len, texts)) + 1
        ids = [[ord(c) % 31 for c in t] + [31] * (width - len(t)) for t in texts]
        return BatchEncoding({"input_ids": torch.tensor(ids)})


def test_alignment_agrees_with_the_model_s_own_cosines(tiny_clip: tuple) -> None:
    model, tokenizer, preprocess = tiny_clip
    images, prompts = solid(RED, GREEN, BLUE), ["red", "green", "red"]
    got = metrics.Clip("tiny", *tiny_clip).align(images, prompts)
    pixels = preprocess(images)
    with torch.inference_mode():
        logits = model(**tokenizer(prompts), pixel_values=pixels).logits_per_image
        cosines = logits / model.logit_scale.exp()
    assert got == pytest.approx(cosines.diagonal().numpy(), abs=1e-5)


def test_alignment_takes_one_prompt_for_all_and_refuses_other_numbers(tiny_clip: tuple) -> None:
    images = solid(RED, GREEN, BLUE)
    clip = metrics.Clip("tiny", *tiny_clip)
    one = clip.align(images, "red")
    assert one == pytest.approx(clip.align(images, ["red"] * 3))
    with pytest.raises(
        ValueError, match="prompts must be one text or one for each image, got 2 for 3"
    ):
        clip.align(images, ["red", "green"])


# --------------------------------------------------------------------- distances of features


def test_frechet_distance_by_hand() -> None:
    a = np.array([[0.0, 0], [2, 0], [0, 2], [2, 2]])  # variance 4/3 in each direction
    assert _frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert _frechet(a, a + np.array([3, 4])) == pytest.approx(25)  # only the means differ
    # twice as wide around the same mean: sum over directions of (2s - s)^2 = 2 * 4/3
    assert _frechet(a, 2 * a - 1) == pytest.approx(8 / 3)


@pytest.mark.parametrize("count", [200, 10])  # more, and fewer, images than features
def test_frechet_distance_against_scipy(count: int) -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(count, 16)), rng.normal(0.3, 1.4, size=(count, 16))
    got = _frechet(a, b)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    gap = np.sum((a.mean(0) - b.mean(0)) ** 2)
    root = np.real(sqrtm(first @ second))
    assert got == pytest.approx(gap + np.trace(first + second - 2 * root), rel=1e-4)


def test_kernel_distance_against_a_plain_reading() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(20, 8)), rng.normal(0.5, 1, size=(20, 8))
    got = _kernel(a, b, subsets=1, size=20)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 8 + 1) ** 3)

    within = [
        np.mean([kernel(x[i], x[j]) for i in range(20) for j in range(20) if i != j])
        for x in (a, b)
    ]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert got[0] == pytest.approx(sum(within) - 2 * across, rel=1e-9)


def test_kernel_distance_leaves_torch_s_generator_alone() -> None:
    a = np.random.default_rng(0).normal(size=(10, 3))
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    _kernel(a, a + 1, subsets=3)
    assert torch.equal(torch.rand(3), wanted)


def test_kernel_distance_is_near_zero_for_one_distribution_and_repeatable() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    first, again = (_kernel(a, b) for _ in range(2))
    assert first == again
    assert abs(first[0]) < 3 * first[1]
    assert _kernel(a, b + 1)[0] > 20 * abs(first[0])


def test_distances_refuse_what_cannot_be_compared() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    extractor = metrics.as_embedder(channel_means)
    with pytest.raises(ValueError, match="from 'channel_means' as well, got widths 3 and 2"):
        metrics.image_distances(images, channel_means(images)[:, :2], extractor)
    with pytest.raises(
        ValueError, match=r"reference must have finite features \[N >= 2, D\], got shape \[1, 3\]"
    ):
        metrics.image_distances(images, images[:1], extractor)
    with pytest.raises(ValueError, match="images must have finite features"):
        metrics.image_distances(images[:1], images, extractor)


def channel_means(images: np.ndarray) -> np.ndarray:
    return images.astype(float).mean(axis=(1, 2))


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("Inception", ["FID", "KID"]),
        ("CLIP", ["CLIP-FID", "CLIP-KID"]),
        ("", ["Fréchet distance", "kernel distance"]),
    ],
)
def test_distances_of_pictures_are_named_after_their_network(family: str, names: list) -> None:
    rng = np.random.default_rng(0)
    ours, real = (rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8) for n in (12, 9))
    extractor = metrics.Embedder("net", "as they are", channel_means, family)
    got = metrics.image_distances(ours, real, extractor)
    assert [one.name for one in got] == names
    assert {one.extractor for one in got} == {"net (as they are)"}
    assert {(one.images, one.references) for one in got} == {(12, 9)}
    features = channel_means(ours), channel_means(real)
    assert got[0].value == pytest.approx(_frechet(*features))
    again = metrics.image_distances(ours, features[1], extractor)
    assert again == got, "features made before give the same"


def test_real_pictures_from_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, 8, 3), dtype=np.uint8) for h in (8, 8, 6, 8)]
    (tmp_path / "below").mkdir()
    for place, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / ("below" if place == 0 else ".") / f"{place}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    extractor = metrics.as_embedder(channel_means)
    got = metrics.real_features(tmp_path, extractor)
    order = [1, 2, 3, 0]  # 1.png, 2.png, 3.png, below/0.png
    assert got == pytest.approx(np.stack([channel_means(images[i][None])[0] for i in order]))
    (tmp_path / "4.png").write_text("broken")
    with pytest.raises(ValueError, match=r"4\.png is no picture"):
        metrics.real_features(tmp_path, extractor)
    with pytest.raises(ValueError, match="must be a folder with pictures"):
        metrics.real_features(tmp_path / "none", extractor)


def test_the_lab_s_real_features_belong_to_its_clip() -> None:
    got = metrics.real_features("lab", metrics.load_clip().embedder)
    assert got == pytest.approx(lab.reference_features().numpy())
    with pytest.raises(ValueError, match="features of the lab CLIP, not of 'channel_means'"):
        metrics.real_features("lab", metrics.as_embedder(channel_means))


# ------------------------------------------------------------------------------- detection


def test_detection_by_hand() -> None:
    scores = [0.9, 0.8, 0.3, 0.1, 0.4, 0.5]  # positives first: 5 of 3 x 3 pairs in order
    labels = [True, True, True, False, False, False]
    frame = metrics.detection_metrics(scores, labels, threshold=0.5).set_index("metric")
    assert frame.value["AUROC"] == pytest.approx(7 / 9)
    assert frame.value["TPR@1%FPR"] == pytest.approx(2 / 3)
    assert frame.value["accuracy"] == pytest.approx(5 / 6)  # 0.3 missed; 0.5 is not above
    assert ((frame.low <= frame.value) & (frame.value <= frame.high)).all()
    assert frame["rule"].tolist() == ["", "FPR at most 0.01", "score above 0.5"]


@pytest.mark.parametrize("decimals", [1, 6])  # with and without ties
def test_detection_against_scikit_learn(decimals: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = np.arange(500) < 200
    scores = (rng.normal(size=500) + 1.5 * labels).round(decimals)
    frame = metrics.detection_metrics(scores, labels, 0.7, resamples=10).set_index("metric")
    fpr, tpr, _ = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    assert frame.value["AUROC"] == pytest.approx(sklearn.roc_auc_score(labels, scores))
    assert frame.value["TPR@1%FPR"] == pytest.approx(tpr[fpr <= 0.01].max())
    assert frame.value["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, scores > 0.7))


def test_bootstrap_interval_has_about_its_coverage() -> None:
    rng = np.random.default_rng(5)
    truth = 0.9213504  # P(N(2,1) > N(0,1)) = Phi(2 / sqrt 2)
    inside = 0
    for _ in range(60):
        scores = np.concatenate([rng.normal(2, 1, 40), rng.normal(0, 1, 40)])
        auroc = metrics.detection_metrics(scores, np.arange(80) < 40, 1, resamples=200).iloc[0]
        inside += auroc.low <= truth <= auroc.high
    assert inside >= 50  # 95 % of 60 is 57


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [True], "labels must be one for each score, got 1 for 2"),
        ([0.1, 0.2], [True, True], "labels must hold both classes, got only True"),
        ([0.1, np.nan], [True, False], "scores must be finite numbers.*1 not finite"),
    ],
)
def test_detection_refuses(scores: list, labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.detection_metrics(scores, labels, 0.5)


# ------------------------------------------------------------------------------- summaries


def test_summary_is_median_and_median_deviation() -> None:
    got = metrics.summarize([1, 1, 2, 2, 4, 6, 9])  # the textbook example: median 2, MAD 1
    assert (got["median"], got["mad"], got["prompts"]) == (2, 1, 7)
    assert got["low"] <= 2 <= got["high"]
    same = {"prompts": 4, "median": 0.5, "mad": 0, "low": 0.5, "high": 0.5}
    assert metrics.summarize([0.5] * 4) == same


def test_one_prompt_tells_no_spread() -> None:
    alone = metrics.summarize([0.5])
    assert (alone["prompts"], alone["median"]) == (1, 0.5)
    assert np.isnan([alone["mad"], alone["low"], alone["high"]]).all()


def test_summary_refuses() -> None:
    with pytest.raises(ValueError, match="values must be finite numbers, at least one, got 0"):
        metrics.summarize([])


# ---------------------------------------------------------------------------- localization


def test_localization_quality_by_hand() -> None:
    found, truth = NeuronSet({1: [3, 4], 2: [0]}), NeuronSet({1: [4, 5, 6], 2: [0]})
    got = metrics.localization_quality(found, truth)
    assert got == {
        "hit": 2,
        "missed": 2,
        "extra": 1,
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(1 / 2),
    }


def test_localization_quality_is_undefined_for_empty_sets() -> None:
    nothing, some = NeuronSet({}), NeuronSet({1: [1]})
    assert np.isnan(metrics.localization_quality(nothing, some)["precision"])
    assert metrics.localization_quality(nothing, some)["recall"] == 0
    assert np.isnan(metrics.localization_quality(some, nothing)["recall"])
