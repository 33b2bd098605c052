"""Measures what the embedded model is for: does it memorize, is the copy where it was planted, what
is left without.

The first part uses no part of the method; the second compares the method with the planted neurons.
Every number comes with the target it is measured against, whether met or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nemo_kit import lab, metrics
from nemo_kit.localization.differences import Differences
from nemo_kit.models import DiffusionModel, load
from nemo_kit.neurons import NeuronSet, random_neurons
from nemo_kit.similarity import similarity
from nemo_kit.store import Keyed, detect_all, generate_all, localize_all
from training.photos import SIZE

SEEDS = range(101, 111)  # detection uses 1 to 10
COPY = metrics.COPY_THRESHOLD


@dataclass
class Report:
    """All measurements of one lab model, computed on demand and kept below ``store``."""

    store: Path
    model: DiffusionModel = field(default_factory=lambda: load("lab"))
    steps: int = 50
    pictures: int = 10  # of each prompt
    ordinary_prompts: int = 80  # of the non-memorized ones, three pictures each

    @cached_property
    def keyed(self) -> Keyed:
        """The model with its key, computed once."""
        return Keyed.of(self.model)

    def images(
        self,
        prompts: Iterable[str],
        neurons: NeuronSet | Mapping[str, NeuronSet] | None = None,
        seeds: Iterable[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """Generations of each prompt, uint8 [seeds, 64, 64, 3]."""
        seeds = SEEDS[: self.pictures] if seeds is None else seeds
        frame = generate_all(
            self.keyed, prompts, seeds, neurons, store=self.store, steps=self.steps, guidance=None
        )
        return {p: np.stack(list(rows["image"])) for p, rows in frame.groupby("prompt", sort=False)}

    def prompts(self, *roles: str) -> list[str]:
        """The lab's prompts of these roles."""
        return list(lab.prompts(*roles)["prompt"])

    # -- without the method --

    @cached_property
    def copies(self) -> pd.DataFrame:
        """One row a verbatim or ladder prompt: `metrics.measured`; `copied`, the share of
        pictures above `COPY` that are nearest to their own training image of all; `psnr`, the
        median in dB to the decoded one."""
        table = lab.prompts("verbatim", "ladder")
        made = self.images(table["prompt"])
        shots = [made[prompt] for prompt in table["prompt"]]
        targets = np.stack([lab.training_image(prompt) for prompt in table["prompt"]])
        found = metrics.measured(table, shots, metrics.lab_descriptor(), targets)
        best = decoded(self.model, targets)
        return found.assign(
            copied=[self._copied(p, i) for p, i in zip(table["prompt"], shots, strict=True)],
            psnr=[_median_psnr(i, b) for i, b in zip(shots, best, strict=True)],
        )

    def _copied(self, prompt: str, images: np.ndarray) -> float:
        known, vectors = self.gallery
        cosine = lab.descriptor()(images) @ vectors.T  # [pictures, training images]
        own = known.index(prompt)
        return float(((cosine[:, own] > COPY) & (cosine.argmax(1) == own)).float().mean())

    @cached_property
    def templates(self) -> pd.DataFrame:
        """One row a template prompt: similarity inside the fixed region, spread of the background
        colour over seeds."""
        table = lab.prompts("template")
        made = self.images(table["prompt"])
        rows = [self._template_row(prompt, made[prompt]) for prompt in table["prompt"]]
        return pd.concat([table, pd.DataFrame(rows)], axis=1)

    def _template_row(self, prompt: str, images: np.ndarray) -> dict[str, float]:
        free = background_mask()[self._family(prompt)]
        target = lab.training_image(prompt)
        inside = _median_psnr(images[:, ~free], target[~free])
        colours = images[:, free].mean(1)  # [seeds, 3]
        return {"psnr_fixed": inside, "colour_spread": float(colours.std(0).mean())}

    @staticmethod
    def _family(prompt: str) -> str:
        table = lab.prompts("template")
        return str(table.loc[table["prompt"] == prompt, "family"].iloc[0])

    @cached_property
    def gallery(self) -> tuple[list[str], torch.Tensor]:
        """All training images' prompts and descriptor vectors [N, 128]."""
        known, images = lab.training_images()
        return known, lab.descriptor()(images)

    @cached_property
    def ordinary(self) -> pd.DataFrame:
        """One row a non-memorized prompt: largest similarity to any training image, diversity,
        alignment."""
        prompts = self.prompts("non_memorized")[: self.ordinary_prompts]
        made = self.images(prompts, seeds=list(SEEDS)[:3])
        return pd.DataFrame([self._ordinary_row(prompt, made[prompt]) for prompt in prompts])

    def _ordinary_row(self, prompt: str, images: np.ndarray) -> dict[str, float | str]:
        nearest = (lab.descriptor()(images) @ self.gallery[1].T).amax(1)
        return {
            "prompt": prompt,
            "nearest": float(nearest.max()),
            "diversity": metrics.diversity(images, lab.descriptor()),
            "alignment": float(np.median(metrics.alignment(images, prompt, *lab.clip()))),
        }

    # -- the score --

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Detection scores of memorized (not ladder) and non-memorized prompts."""
        table = lab.prompts("verbatim", "template", "non_memorized")
        return table.merge(detect_all(self.keyed, table["prompt"], store=self.store), on="prompt")

    @cached_property
    def detection(self) -> pd.DataFrame:
        """AUROC, TPR at 1 % FPR and accuracy with intervals."""
        return metrics.detection_metrics(
            self.scores["score"], self.scores["type"] != "", self.model.calibration.threshold
        )

    def same_seed(
        self, prompt: str, neurons: NeuronSet | None = None, other: str | None = None
    ) -> float:
        """Largest same-seed score over seeds 1 to 10 between the prompt and itself changed.

        Changed means: with ``neurons`` at zero, or another prompt (for the floor: the empty one).
        """
        draw = Differences(self.model, self.model.calibration.detection)
        noise = self.model.noise(range(1, 11))
        plain, changed = (
            self.model.embed(text).repeat_interleave(10, 0)
            for text in (prompt, prompt if other is None else other)
        )
        sets = None if neurons is None else [neurons] * 10
        first = draw.in_batches(noise, plain, None, 32)
        second = draw.in_batches(noise, changed, sets, 32)
        return float(similarity(first, second, self.model.calibration.similarity).max())

    @cached_property
    def floor(self) -> pd.DataFrame:
        """Same-seed score of each memorized prompt against the empty prompt: what deactivation can
        reach at best."""
        prompts = self.prompts("verbatim", "template")
        return pd.DataFrame(
            {"prompt": prompts, "floor": [self.same_seed(p, other="") for p in prompts]}
        )

    # -- planted neurons --

    @cached_property
    def switched(self) -> pd.DataFrame:
        """One row a planted prompt: its images and score with its planted neurons at zero, and with
        random ones."""
        planted = lab.planted()
        on = self.images(planted)
        off = self.images(planted, planted)
        widths, taken = {n.index: n.width for n in self.model.searched}, every_planted()
        random = {
            p: random_neurons(found, widths, taken, seed)
            for seed, (p, found) in enumerate(planted.items())
        }
        other = self.images(planted, random)
        describe = lab.descriptor()
        return pd.DataFrame(
            [
                {
                    "prompt": p,
                    "neurons": len(planted[p]),
                    "score_off": self.same_seed(p, planted[p]),
                    "sscd_gen": metrics.sscd_gen(off[p], on[p], describe),
                    "sscd_gen_random": metrics.sscd_gen(other[p], on[p], describe),
                    "diversity_off": metrics.diversity(off[p], describe),
                }
                for p in planted
            ]
        )

    @cached_property
    def found(self) -> pd.DataFrame:
        """NeMo on every verbatim and template prompt, beside the planted neurons where there are
        any; necessary is a planted neuron that, on again alone, brings the copy back."""
        planted = lab.planted()
        prompts = self.prompts("verbatim", "template")
        frame = localize_all(self.keyed, prompts, store=self.store)
        rows = [self._found_row(row, planted.get(row.prompt)) for row in frame.itertuples()]
        return pd.concat([frame, pd.DataFrame(rows)], axis=1)

    def _found_row(self, row: object, planted: NeuronSet | None) -> dict[str, float | bool]:
        if planted is None:
            return {
                "planted": 0,
                "precision": np.nan,
                "recall": np.nan,
                "necessary": 0,
                "recall_necessary": np.nan,
            }
        threshold = self.model.calibration.threshold
        alone = (NeuronSet.of([pair]) for pair in planted)
        needed = NeuronSet.of(
            pair
            for one in alone
            if self.same_seed(row.prompt, planted - one) >= threshold
            for pair in one
        )
        quality = metrics.localization_quality(row.refined, planted)
        return {
            "planted": len(planted),
            "precision": quality["precision"],
            "recall": quality["recall"],
            "necessary": len(needed),
            "recall_necessary": len(row.refined & needed) / len(needed) if needed else np.nan,
        }

    @cached_property
    def collateral(self) -> pd.DataFrame:
        """CLIP-FID and alignment of non-memorized prompts, undisturbed and with every planted
        neuron at zero."""
        every = every_planted()
        prompts = self.prompts("non_memorized")[: self.ordinary_prompts]
        rows = []
        for name, neurons in (("undisturbed", None), ("all planted neurons off", every)):
            made = self.images(prompts, neurons, seeds=list(SEEDS)[:3])
            images = np.concatenate(list(made.values()))
            texts = [p for p, found in made.items() for _ in found]
            clip = metrics.load_clip()
            rows.append(
                {
                    "setting": name,
                    "alignment": float(np.median(clip.align(images, texts))),
                    "clip_fid": metrics.frechet_distance(
                        clip.embedder(images), lab.reference_features()
                    ),
                }
            )
        return pd.DataFrame(rows)

    # -- the table --

    def targets(self) -> pd.DataFrame:
        """One row a target: what, wanted, measured, met."""
        return pd.DataFrame(
            [
                {
                    "target": what,
                    "wanted": f"{sign} {bound:g}",
                    "measured": value,
                    "met": bool(value >= bound if sign == ">=" else value <= bound),
                }
                for what, value, sign, bound in self._measured()
            ]
        )

    def _measured(self) -> list[tuple[str, float, str, float]]:
        verbatim = self.copies.query("role == 'verbatim'")
        switched, tau = self.switched, self.model.calibration.threshold
        found = self.found[self.found["planted"] > 0]
        undisturbed, off = self.collateral.iloc[0], self.collateral.iloc[1]
        return [
            (
                "share of verbatim prompts copied by 9 of 10 seeds",
                (verbatim["copied"] >= 0.9).mean(),
                ">=",
                0.9,
            ),
            ("median PSNR to the decoded training image [dB]", verbatim["psnr"].median(), ">=", 20),
            (
                "templates: median PSNR inside the fixed region [dB]",
                self.templates["psnr_fixed"].median(),
                ">=",
                15,
            ),
            (
                "templates: median background spread over seeds [of 255]",
                self.templates["colour_spread"].median(),
                ">=",
                20,
            ),
            (
                "non-memorized: share below 0.7 to every training image",
                (self.ordinary["nearest"] < COPY).mean(),
                ">=",
                0.9,
            ),
            (
                "detection AUROC",
                float(self.detection.set_index("metric").loc["AUROC", "value"]),
                ">=",
                0.97,
            ),
            (
                "share of memorized prompts whose floor lies below tau",
                (self.floor["floor"] < tau).mean(),
                ">=",
                0.9,
            ),
            ("planted off: median SSCD_gen", switched["sscd_gen"].median(), "<=", 0.3),
            (
                "planted off: share of prompts below tau",
                (switched["score_off"] < tau).mean(),
                ">=",
                0.9,
            ),
            (
                "random neurons off: median SSCD_gen",
                switched["sscd_gen_random"].median(),
                ">=",
                0.8,
            ),
            ("NeMo: median recall of planted neurons", found["recall"].median(), ">=", 0.9),
            (
                "NeMo: median recall of necessary planted neurons",
                found["recall_necessary"].median(),
                ">=",
                0.9,
            ),
            ("NeMo: median precision", found["precision"].median(), ">=", 0.7),
            (
                "all planted off: CLIP-FID over undisturbed",
                off["clip_fid"] / undisturbed["clip_fid"],
                "<=",
                1.1,
            ),
            (
                "all planted off: alignment over undisturbed",
                off["alignment"] / undisturbed["alignment"],
                ">=",
                0.9,
            ),
        ]


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal to noise ratio of uint8 pictures, in dB."""
    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(second, first, data_range=255))


def _median_psnr(pictures: Iterable[np.ndarray], target: np.ndarray) -> float:
    return float(np.median([psnr(picture, target) for picture in pictures]))


@torch.no_grad()
def decoded(model: DiffusionModel, pictures: np.ndarray) -> np.ndarray:
    """Pictures after the model's own autoencoder, uint8 [N, 64, 64, 3]: the best that a generation
    can be."""
    from nemo_kit.lab.copy_descriptor import to_tensor

    pixels = to_tensor(pictures).to(model.device, model.dtype)
    return model.decode(model.vae.encode(pixels).latent_dist.mean * model.vae.config.scaling_factor)


def background_mask() -> dict[str, np.ndarray]:
    """Where each template family's background shows for certain, bool [64, 64]."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return {
        "iphone": (x < 14) | (x > 49),
        "podcast": y < 3,
        "shirt": (y < 4) | ((x < 9) & (y > 34)) | ((x > 52) & (y > 34)),
    }


def every_planted() -> NeuronSet:
    """All planted neurons together."""
    return NeuronSet.of({pair for found in lab.planted().values() for pair in found})
