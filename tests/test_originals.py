"""Training images: matched by name, cut square, never fetched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nemo_kit import lab, metrics
from nemo_kit.originals import TrainingImages
from nemo_kit.store import prompt_table

RELEASED = ";Caption;URL;type;mean_sscd;max_sscd;Index\n" + "".join(
    f"{row};{caption};http://x/{row}.jpg;{kind};0.8;0.8;{index}\n"
    for row, (caption, kind, index) in enumerate(
        [("a pod", "VM", 1030727993), ("=bag", "TM", 20), ("tea", "TM", 7)]
    )
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = (0, 255, 0)  # the middle square
    Image.fromarray(wide).save(made / "1030727993.png")
    Image.new("L", (600, 600), 9).save(made / "7.webp", lossless=True)
    (made / "20.txt").write_text("no picture")
    return made


def released(tmp_path: Path) -> pd.DataFrame:
    (tmp_path / "prompts.csv").write_text(RELEASED)
    return prompt_table([tmp_path / "prompts.csv"])


def test_images_of_the_released_list_are_found_by_index(tmp_path: Path, folder: Path) -> None:
    known = TrainingImages(released(tmp_path), folder)
    assert list(known) == ["a pod", "tea"]
    assert known.get("=bag") is None
    image = known["a pod"]
    assert image.shape == (512, 512, 3)
    assert image.dtype == np.uint8
    assert (image[8:-8, 8:-8] == (0, 255, 0)).all()  # the sides are cut off
    assert (known["tea"] == 9).all()  # grey becomes three channels


def test_where_no_prompt_has_an_image_it_is_told(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,type\na,VM\nb,VM\nc,\n")
    with pytest.warns(UserWarning, match=r"^0 of 3 prompts have a training image; .* column image"):
        none = TrainingImages(prompt_table([tmp_path / "p.csv"]), folder)
    assert none.told().startswith("0 of 3 prompts have a training image; ")
    assert TrainingImages(released(tmp_path), folder).told() == (
        "2 of 3 prompts have a training image"
    )


def test_two_models_in_one_kernel_are_each_measured_against_their_own(tmp_path: Path) -> None:
    """The same prompt, another picture in each folder."""
    table = pd.DataFrame({"prompt": ["x"], "image": ["1"]})
    known, look = {}, metrics.lab_descriptor()
    for name, noise in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        picture = np.random.default_rng(noise).integers(0, 256, (8, 8, 3), np.uint8)
        large = Image.fromarray(picture).resize((512, 512), Image.Resampling.NEAREST)
        large.save(tmp_path / name / "1.png")
        known[name] = TrainingImages(table, tmp_path / name)
    for name, other in (("a", "b"), ("b", "a")):
        shots = np.stack([known[name]["x"]] * 2)
        own, foreign = (
            metrics.MEASURES["orig"](metrics.Seen("x", shots, look, training=known[one]["x"]))
            for one in (name, other)
        )
        assert own == pytest.approx(1, abs=1e-4)
        assert foreign < 0.9


def test_a_csv_names_files_with_or_without_their_ending(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "own.csv").write_text("prompt,type,image\nx,VM,7.webp\ny,VM,7\nz,,\n")
    assert set(TrainingImages(prompt_table([tmp_path / "own.csv"]), folder)) == {"x", "y"}


def test_without_a_folder_the_lab_models_images_are_taken() -> None:
    known = TrainingImages(lab.prompts("non_memorized"))
    prompts, images = lab.training_images()
    assert set(known) == set(prompts)
    assert np.array_equal(known[prompts[1]], images[1])
    assert not set(known) & set(lab.prompts("non_memorized")["prompt"])


def test_bad_folders_tables_and_files_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="training_images: there is no folder"):
        TrainingImages(lab.prompts(), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="table lacks image; it has prompt"):
        TrainingImages(pd.DataFrame({"prompt": ["x"]}))
    (folder / "20.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"20\.jpg is no picture"):
        TrainingImages(released(tmp_path), folder)["=bag"]
