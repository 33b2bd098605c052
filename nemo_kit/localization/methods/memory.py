"""How much of a prompt's memory is left under gates: the losses of methods that learn or derive.

Scope: `Memory`, a differentiable function of one gate a searched neuron, in three kinds:
- "score": similarity of each seed's noise difference to its ungated one (NeMo, section 3.2); at
  open gates it is at its maximum, and has no slope there;
- "gap": ‖Δε‖ over the ungated one, Δε against the empty prompt (Wen et al., ICLR 2024), of a
  rectified flow ‖Δv‖;
- "image": minus the error of the noise predicted in the noised training image, over the ungated
  error (the loss of training; Chang et al., NAACL 2024, take a text's).
All are unguided, at detection's timestep; "image" has one timestep for each seed, spread evenly.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nemo_kit.calibration import resolve
from nemo_kit.checks import check_choice
from nemo_kit.hooks import gate_neurons
from nemo_kit.localization.methods.base import by_layer
from nemo_kit.localization.scoring import SAMPLES, objective
from nemo_kit.memory import BatchSize
from nemo_kit.mitigation.audit import image_latents
from nemo_kit.mitigation.gap import norms
from nemo_kit.models.base import DiffusionModel
from nemo_kit.similarity import noise_differences

LOSSES = {
    "score": "memorization score to the ungated prediction",
    "gap": "‖Δε‖ at detection's timestep",
    "image": "denoising loss on the training image",
}
AT_ONCE = 8  # samples of a call with its backward pass
ENTRY = {"score": 1, "gap": 2, "image": 1}  # samples a seed before the first question


class Memory:
    """What is left of a prompt's memory, seed by seed, as a function of gates.

    Called with gates [n, neurons] (1 open, 0 closed; layer by layer as searched) and n places of
    seeds it returns [n]: 1 where nothing is closed ("image": −1), less where memory is lost.
    Parameters: `kind`, in `LOSSES`; `image`, uint8 [H, W, 3], for "image".
    Raises ValueError for another kind, for "image" without one, or a prompt without effect.
    """

    def __init__(
        self,
        model: DiffusionModel,
        prompt: str,
        seeds: list[int],
        kind: str = "gap",
        image: np.ndarray | None = None,
    ) -> None:
        check_choice("loss", kind, LOSSES)
        if kind == "image" and image is None:
            raise ValueError("image must be the prompt's training image for the loss 'image'")
        detection, self.similarity = resolve(model.calibration)
        self.model, self.kind, self.seeds = model, kind, seeds
        self.neurons = sum(layer.width for layer in model.searched)
        noise = model.noise(seeds, detection.noise)
        self.noise, self.text = noise, model.embed(prompt)
        self.inputs, self.batch = noise, BatchSize(AT_ONCE)
        timestep = model.timesteps(detection.steps)[detection.timestep_index]
        self.timesteps = timestep.to(model.device).expand(len(seeds))
        if kind == "image":
            trained = model.scheduler.config.num_train_timesteps
            middles = (torch.arange(len(seeds)) + 0.5) * trained / len(seeds)
            self.timesteps = middles.long().to(model.device)
            clean = image_latents(model, image).expand_as(noise)
            self.inputs = model.scheduler.add_noise(clean, noise, self.timesteps)
        prediction = self._all(self.text)  # without gates: what values are relative to
        if kind == "score":
            self.open = noise_differences(prediction, noise)
        elif kind == "gap":
            self.empty = self._all(model.embed(""))
            self.open = norms(prediction - self.empty)
        else:
            self.open = _error(prediction, noise)

    @torch.no_grad()
    def _all(self, text: Tensor) -> Tensor:
        places = list(range(len(self.seeds)))
        return torch.cat(self.batch.run(lambda p: self._predict(places[p], text), len(places)))

    def _predict(self, places: list[int], text: Tensor) -> Tensor:
        given = self.inputs[places], self.timesteps[places], text.expand(len(places), -1, -1)
        if self.kind == "image":  # the loss of training is one on the noise
            return self.model.predict_noise(*given)
        return self.model.predict_compared(*given)

    def __call__(self, gates: Tensor, places: list[int]) -> Tensor:
        own = by_layer(gates.to(self.model.device).T, self.model.searched)
        shaped = {layer: gate.T[:, None] for layer, gate in own.items()}  # [n, 1, width]
        with gate_neurons(self.model.denoiser, self.model.searched, shaped):
            prediction = self._predict(places, self.text)
        if self.kind == "score":
            drawn = noise_differences(prediction, self.noise[places]).split(1)
            pairs = zip(drawn, self.open[places].split(1), strict=True)
            return torch.stack([objective(*pair, self.similarity) for pair in pairs])
        if self.kind == "gap":
            return (prediction - self.empty[places]).flatten(1).norm(dim=1) / self.open[places]
        return -_error(prediction, self.noise[places]) / self.open[places]

    def slopes(self, gates: Tensor, places: list[int]) -> Tensor:
        """The values' derivatives by each sample's own gates: [n, neurons], on the CPU."""

        def derived(part: slice) -> Tensor:
            before = self.model.samples_evaluated
            own = gates[part].detach().clone().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self(own, places[part]).sum(), own)
            self.model.samples_evaluated += (SAMPLES - 1) * (self.model.samples_evaluated - before)
            return slope.cpu()

        return torch.cat(self.batch.run(derived, len(places)))

    def learn(
        self,
        start: Tensor,
        closed: Callable[[Tensor], Tensor],
        price: Callable[[Tensor], Tensor],
        steps: int,
        rate: float,
    ) -> tuple[Tensor, Tensor]:
        """Parameters after so many steps of Adam on memory + price, and memory's first slopes.

        Returns [neurons] and, mean over seeds, [neurons].
        Parameters: `start`, [neurons]; `closed`, parameters -> how far each neuron is closed in
        each seed, [seeds, neurons]; `price`, parameters -> a number; `rate` of Adam.
        Source: Chang et al., NAACL 2024. They learn the mask that keeps a text; what is asked here
        is what to switch off: the mask that loses the picture, with a price on closed neurons.
        """
        parameters = start.clone().requires_grad_()
        adam = torch.optim.Adam([parameters], lr=rate)
        places, first = list(range(len(self.seeds))), None
        for _ in range(steps):
            with torch.enable_grad():
                shut, cost = closed(parameters), price(parameters)
                slopes = self.slopes(1 - shut, places)
                first = slopes.mean(dim=0) if first is None else first
                adam.zero_grad()
                # memory's part comes as its derivative by the gates, mean over seeds
                (cost - (slopes * shut).sum() / len(places)).backward()
            adam.step()
        return parameters.detach(), first


def _error(prediction: Tensor, noise: Tensor) -> Tensor:
    return (prediction - noise).square().flatten(1).mean(dim=1)


def rounds(
    budget: int | None, seeds: list[int], kind: str, own: int, each: int = SAMPLES
) -> tuple[list[int], int]:
    """The seeds that a budget pays for with one question each, and how many questions of all.

    Parameters: `own`, questions without a budget; `each`, denoiser samples of one a seed.
    Raises ValueError where it doesn't pay for one question of one seed.
    """
    check_choice("loss", kind, LOSSES)
    if budget is None:
        return seeds, own
    if budget < (least := ENTRY[kind] + each):
        raise ValueError(f"budget must pay for one seed, {least} denoiser samples, got {budget}")
    kept = seeds[: budget // least]
    return kept, max(1, min(own, (budget // len(kept) - ENTRY[kind]) // each))
