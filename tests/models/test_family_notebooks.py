"""Every notebook on a small folder of the families beside Stable Diffusion 1 and 2.

A selection, in which each notebook has a family and each family two notebooks; with the option
`--every-family` all pairs. Cells run in this process, as they stand.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pipelines
import pytest
from books import cells, run, run_cells
from matplotlib import pyplot as plt
from PIL import Image
from test_stable_diffusion import BOOKS, FEW, WORDS, Setup, own_files

from nemo_kit import NeuronSet, calibrate, detect, figures, load
from nemo_kit.figures import runner
from nemo_kit.mitigation import NeMo, export
from nemo_kit.similarity import SimilaritySettings

OTHERS = ["a lamp", "7 cats", "tea, no cup", "a hill"]
CHOSEN = {
    "sdxl": ["00_quickstart", "08_ablation", "explorer"],
    "pixart_alpha": ["05_mitigation", "removal"],
    "pixart_sigma": ["09_thresholds", "11_neuron_atlas"],
    "sana": ["04_dose_response", "plan"],
    "hunyuan": ["02_activations", "07_quality"],
    "sd3": ["01_detection", "06_memorization_types", "12_who_finds_them"],
    "flux": ["03_localization", "10_layers"],
}
DEAR = ["slimming", "hard concrete", "integrated gradients", "patching", "NeMo, sequential"]
# FLUX draws with one pass by default, in which there is nothing to swap
ONLY = {("flux", "08_ablation"): {"guidance": 2.0}}
# nearly all neurons of so small a Sana are found, so that no random ones are left to compare with
NAMED = {("sana", "05_mitigation"): "exclude leaves 0 more neurons, but 44 are needed"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The pairs of a family and a notebook: of the runner's, or of the one that a test names."""
    every = metafunc.config.getoption("--every-family")
    own = metafunc.function.__name__.rpartition("_")[2]  # test_the_explorer, …
    names = [*BOOKS] if own == "figures" else [own]
    pairs = [(f, name) for f in CHOSEN for name in names if every or name in CHOSEN[f]]
    metafunc.parametrize(("family", "name"), pairs)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Setup]:
    """A calibrated folder of a family, with prompts of which four are flagged."""

    @cache
    def made(family: str) -> Setup:
        folder = tmp_path_factory.mktemp(family)
        path = pipelines.save(folder / "model", family)
        model = load(str(path), device="cpu")
        known = calibrate(model, WORDS, range(1, 4), similarity=SimilaritySettings(kernel=3))
        model.calibration = known
        found = detect(model, WORDS, range(1, 4)).sort_values("score", ascending=False)
        texts, scores = found["prompt"].to_list(), found["score"].to_list()
        replace(known, threshold=(scores[3] + scores[4]) / 2).save(path / "nemo")
        ladder = (texts[2], texts[3])
        files = own_files(folder, texts[:2], [*texts[4:], *OTHERS], ladder)
        (folder / "images").mkdir()
        for name in ("1", "3", "4"):  # 2, the TM prompt's, is missing
            Image.effect_noise((80, 60), 90).save(folder / "images" / f"{name}.jpg")
        return Setup(path, files, folder / "images")

    return made


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    with mpl.rc_context():
        yield
    plt.close("all")


def small(family: str, name: str, setup: Setup, every: bool) -> dict[str, Any]:
    """The least that a notebook can be asked for."""
    told = {
        "model": str(setup.model), "training_images": str(setup.images),
        "prompt_files": [str(path) for path in setup.prompts],
    }  # fmt: skip
    told |= {"without": ["NeMo, sequential"] if every else DEAR}
    few = FEW | told | ONLY.get((family, name), {})
    return {key: value for key, value in few.items() if key in BOOKS[name].kinds}


def test_a_notebook_draws_its_figures(
    family: str, name: str, setup: Callable[[str], Setup], pytestconfig: pytest.Config
) -> None:
    own = setup(family)
    out, given = (
        own.model.parent / "figs",
        small(family, name, own, pytestconfig.getoption("--every-family")),
    )
    [job] = runner.plan(BOOKS, figures.select(BOOKS, [name]), "quick", out, **given)
    assert not job.lacks
    if text := NAMED.get((family, name)):
        with pytest.raises(ValueError, match=text):
            run_cells(name, **job.values | {"store": str(own.model.parent / "store")})
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run_cells(name, **job.values | {"store": str(own.model.parent / "store")})
    failed = [str(one.message) for one in seen if "prompts failed" in str(one.message)]
    told = [str(one.message) for one in seen if "has no pictures" in str(one.message)]
    named = ("not defined for", "has no ᾱ", "no feed-forward layer")
    assert all(any(words in text for words in named) for text in [*failed, *told]), failed
    manifest = runner.read_manifest(out, name)
    drawn = manifest["files"]
    assert {row.name for row in job.book.figures} <= set(drawn)
    assert all((out / file).is_file() for files in drawn.values() for file in files)
    assert manifest["model"]["name"] == str(own.model)
    if name == "03_localization":
        assert (pd.read_csv(out / "F4a.csv")["initial"] > 0).any()
    if name == "05_mitigation":  # what can't act has a row without numbers
        table = pd.read_csv(out / "T1.csv").set_index("setting")
        assert set(table.index) >= {"default", "NeMo", "attention scaling", "Wanda pruning"}
        without = table[table["prompts"] == 0]
        assert without["median"].isna().all()
        assert set(without.index) == {text.split("'")[1] for text in told}
        assert bool(told) == (family != "sdxl")


def test_the_cost_of_many_prompts_is_told_by_plan(
    family: str, name: str, setup: Callable[[str], Setup]
) -> None:
    own = setup(family)
    sample = pd.read_csv(own.prompts[0])["prompt"][:2]
    (own.model.parent / "sample.txt").write_text("\n".join(sample), "utf-8")
    files = [str(own.model.parent / "sample.txt")]
    found = run_cells(
        name, model=str(own.model), device="cpu", prompt_files=files, seeds=3, minutes=0.0
    )
    assert found["plan"]["share flagged"] == 1.0
    assert found["plan"]["hours together"] > 0


def test_what_was_written_into_the_weights_is_told_by_removal(
    family: str, name: str, setup: Callable[[str], Setup], tmp_path: Path
) -> None:
    own = setup(family)
    model, prompt = load(str(own.model), device="cpu"), pd.read_csv(own.prompts[0])["prompt"][0]
    neurons = NeuronSet({layer.index: [0, 3] for layer in model.searched})
    folder = export(model, NeMo({prompt: neurons}), tmp_path / "out", [])
    (tmp_path / "control.txt").write_text("a lamp\na hill", "utf-8")
    found = run_cells(
        name, after=str(folder), device="cpu", control_files=[str(tmp_path / "control.txt")],
        pictures=2, steps=2, store=str(tmp_path / "store"),
    )  # fmt: skip
    assert found["removed"] == neurons
    assert found["own"]["prompt"].tolist() == [prompt]
    assert len(found["layers"]) == len(model.value_layers)
    told = json.loads((folder / "removal.json").read_text("utf-8"))
    left = found["own"]["score_after"][0]
    assert told["memorized"][0]["score_after"] == pytest.approx(left, abs=1e-6)


def test_a_prompt_is_looked_at_in_the_explorer(
    family: str, name: str, setup: Callable[[str], Setup], tmp_path: Path
) -> None:
    """The notebook with the folder in the place of the embedded model; then what its page asks."""
    own = setup(family)
    sources = [
        source.replace('load("lab")', f"load({str(own.model)!r})") for source, _ in cells(name)
    ]
    prompt = pd.read_csv(own.prompts[0])["prompt"][0]
    with chdir(tmp_path), mpl.rc_context({"backend": "agg"}):
        names = run(sources[:-1], {"__name__": "__main__"})
        session = names["session"]
        try:
            session.prompt, session.steps = prompt, 2
            session.seeds = (101,)
            names = run(sources[-1:], names)
            assert session.case.look.flagged
            session.localize("speculative")
            session.wait(300)
            if not session.localization.refined:
                session.toggle(1, 0)
            session.generate()
            session.wait(300)
            assert session.pictures.after.shape[1:] == (*session.probe.model.image_size, 3)
        finally:
            session.close()
            session.wait(300)
