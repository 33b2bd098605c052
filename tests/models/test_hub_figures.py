"""The README's two commands for Stable Diffusion, on a hub that serves what the real one lists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hub_standin import COMMIT, repository, served
from PIL import Image

SD14 = "CompVis/stable-diffusion-v1-4"
FEW = ("memorized=2", "non_memorized=3", "holdout=3", "seeds=3", "bootstrap=20", "compared=1",
       "detector_seeds=1")  # fmt: skip
RELEASED = ";Caption;URL;type;mean_sscd;max_sscd;Index\n"


@pytest.mark.slow
def test_figures_of_a_hub_model(toy_folder: Path, tmp_path: Path) -> None:
    memorized = [f"0;a cat {n};;{kind};0;0;{n}" for n, kind in enumerate(["VM", "TM", "VM", "TM"])]
    other = [f"0;red cup {n};;;0;0;{n}" for n in range(8)]
    for name, rows in (("memorized.csv", memorized), ("unmemorized.csv", other)):
        (tmp_path / name).write_text(RELEASED + "\n".join(rows) + "\n", "utf-8")
    (tmp_path / "held.txt").write_text("Öl 1\nÖl 2\nÖl 3\nÖl 4\n", "utf-8")
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        Image.effect_noise((64, 64), 90).save(images / f"{number}.jpg")

    def command(address: str, *words: object) -> str:
        told = {
            "HF_ENDPOINT": address,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
        }
        done = subprocess.run(
            [sys.executable, "-m", "nemo_kit.cli", *map(str, words), "--device", "cpu"],
            env=os.environ | told, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    with served(SD14, repository(SD14, toy_folder)) as (address, _):
        said = command(address, "calibrate", "--model", SD14, "--hold-out", tmp_path / "held.txt",
                       "--kernel", 3, "--seeds", 3)  # fmt: skip
        assert f"downloading {SD14} (commit {COMMIT[:12]})" in said
        settings = [word for value in FEW for word in ("--set", value)]
        command(address, "figures", "--model", SD14, "--preset", "paper", "--out", tmp_path / "out",
                "--prompts", tmp_path / "memorized.csv", "--prompts", tmp_path / "unmemorized.csv",
                "--training-images", images, "--only", "01_detection", *settings)  # fmt: skip
    scores = pd.read_csv(tmp_path / "out" / "ROC.csv")
    assert set(scores["group"]) == {"VM", "TM", "non-memorized"}
    assert scores["score"].between(0, 1).all()
    assert (tmp_path / "out" / "F2a.png").is_file()
    assert SD14 in (tmp_path / "out" / "index.html").read_text("utf-8")
