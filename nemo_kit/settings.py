"""The method's choices as frozen dataclasses, the reason beside each default.

Scope: how noise differences are compared, detection, localization.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 1 to 4, section 4, and the authors' released
code. The two differ in ten points; each is a named option, marked "difference 1" to "10" (7 is
`exclude` of `neurons.random_neurons`), and `released()` and `paper()` set them all. The default is
the code's behaviour where that fixes the published threshold 0.428 (1, 2, 4, 5), except that
calibration is unguided as the text says (3); elsewhere it is the paper's, and each pair's own data
range (10), on which no score depends on its neighbours. Besides, `released()` draws noise as the
code does, which the text leaves open.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Self, get_args

from nemo_kit.checks import check_choice, check_number, check_whole, is_whole

Halves = Literal["conditional", "both"]
Threshold = Literal["pairs", "maxima"]
Precision = Literal["model", "float32", "bfloat16", "float16"]
Order = Literal["index", "released"]
Noise = Literal["per seed", "one generator"]


@dataclass(frozen=True)
class SimilaritySettings:
    """How two noise differences are compared; checked against their size by `check`.

    The defaults are for Stable Diffusion's 64×64 latents; 0.428 holds for them with `data_range`
    "batch".
    """

    kind: Literal["ms_ssim", "ssim"] = "ms_ssim"  # code; the paper's equation 4 is plain SSIM
    kernel: int = 11  # width of the Gaussian window in latent pixels, odd; sigma follows
    betas: tuple[float, ...] = (0.33, 0.33, 0.33)  # weight of each scale, finest first
    data_range: float | Literal["pair", "batch"] = "pair"  # difference 10: the code has "batch"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("ms_ssim", "ssim"))
        if not is_whole(self.kernel) or self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd integer from 3, got {self.kernel!r}")
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        if not self.betas or min(self.betas) <= 0:
            raise ValueError(f"betas must be positive weights, one a scale, got {self.betas}")
        if isinstance(self.data_range, str):
            check_choice("data_range", self.data_range, ("pair", "batch"))
        else:
            check_number("data_range", self.data_range, 1e-9)

    @property
    def sigma(self) -> float:
        """Standard deviation of the Gaussian window, 1.5 for a kernel of 11."""
        return 1.5 * self.kernel / 11

    @property
    def scales(self) -> int:
        """Number of scales compared."""
        return len(self.betas) if self.kind == "ms_ssim" else 1

    def check(self, height: int, width: int) -> None:
        """Raise ValueError where differences of this size are too small for the settings."""
        smallest = min(height, width)
        for scale in range(self.scales):
            side = smallest >> scale
            needed = self.kernel // 2 + 1 if scale == self.scales - 1 else self.kernel
            if side < needed:
                raise ValueError(
                    f"similarity: kernel {self.kernel} with {self.scales} scales needs larger "
                    f"latents than {height}×{width}: scale {scale + 1} has a side of {side}, "
                    f"needed {needed}; choose a smaller kernel or fewer betas"
                )


@dataclass(frozen=True)
class DetectionSettings:
    """How noise differences are drawn and a threshold is computed from them (Algorithm 1)."""

    steps: int = 50  # DDIM steps that define the timesteps; one prediction is made
    timestep_index: int = 1  # difference 1: the code scores timesteps[1] on x_T; the paper T, 0
    guidance: float = 0.0  # detection is unguided; table 4 has an ablation with guidance 7
    swapped: bool = False  # True: guidance with text and empty prompt exchanged (difference 3)
    calibration_guidance: float = 0.0  # difference 3: the calibration script uses 7
    calibration_swapped: bool = False  # difference 3: … with text and empty prompt swapped
    threshold_from: Threshold = "pairs"  # difference 4: all pairwise scores; "maxima": § 3.1
    deviations: float = 1.0  # the threshold is mean + 1 standard deviation; table 4: −1, 0, 2
    noise: Noise = "per seed"  # "one generator": the code's, see `DiffusionModel.noise`

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 1)
        check_whole("timestep_index", self.timestep_index, 0)
        if self.timestep_index >= self.steps:
            raise ValueError(
                f"timestep_index must be below steps ({self.steps}), got {self.timestep_index}"
            )
        check_number("guidance", self.guidance, 0.0)
        check_number("calibration_guidance", self.calibration_guidance, 0.0)
        check_number("deviations", self.deviations)
        check_choice("threshold_from", self.threshold_from, get_args(Threshold))
        check_choice("noise", self.noise, get_args(Noise))

    @classmethod
    def released(cls) -> Self:
        """As the released code: differences 1, 3 and 4 by its side, all noise of one generator."""
        return cls(calibration_guidance=7.0, calibration_swapped=True, noise="one generator")

    @classmethod
    def paper(cls) -> Self:
        """As the text: the prediction at T, unguided calibration from each prompt's maximum."""
        return cls(timestep_index=0, threshold_from="maxima")

    def for_calibration(self) -> Self:
        """The same with the guidance of calibration."""
        return replace(self, guidance=self.calibration_guidance, swapped=self.calibration_swapped)


@dataclass(frozen=True)
class LocalizationSettings:
    """How candidates are selected and refined (Algorithms 2 to 4)."""

    theta: float = 5.0  # |z| above which a neuron is a candidate; infinity: only the k largest
    theta_step: float = 0.25  # taken off while the prompt still looks memorized
    theta_min: float = 1.0  # the selection ends here, and its score is the new threshold
    k: int = 0  # the k largest activations of each layer are candidates too
    k_step: int = 1  # added while the prompt still looks memorized; 0: without top-k (table 4)
    two_sided: bool = True  # difference 5: |z| (text and code); False: z (Algorithm 2)
    score_theta_min: bool = True  # difference 6: paper; the code stops before it scores theta_min
    refine: bool = True  # False: without refinement (table 4)
    order: Order = "index"  # difference 9: "released" walks lists with doubles: `candidate_lists`
    factor: float = 0.0  # deactivating is × 0; table 4 scales by −1 … 0.75
    halves: Halves = "conditional"  # difference 8: the code acts on both guidance halves
    batch_size: int | None = None  # denoiser samples a call; None: what memory allows
    precision: Precision = "model"  # of denoiser operations; on most CPUs half is slower
    detection: DetectionSettings | None = None  # None: the model's calibration's, else default
    similarity: SimilaritySettings | None = None  # difference 2: None as above, else MS-SSIM
    name: str = field(default="default", compare=False)  # which preset this began as

    def __post_init__(self) -> None:
        check_number("theta", self.theta, 0.0, finite=False)
        check_number("theta_step", self.theta_step, 0.0)
        check_number("theta_min", self.theta_min, 0.0)
        check_number("factor", self.factor)
        check_whole("k", self.k, 0)
        check_whole("k_step", self.k_step, 0)
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size, 1)
        check_choice("precision", self.precision, get_args(Precision))
        check_choice("halves", self.halves, get_args(Halves))
        check_choice("order", self.order, get_args(Order))
        if (self.theta_step == 0 or math.isinf(self.theta)) and self.k_step == 0:
            raise ValueError("theta_step and k_step can't both be 0: the selection would not move")
        if self.theta < self.theta_min:
            raise ValueError(f"theta must be at least theta_min, got {self.theta}")

    @classmethod
    def released(cls, similarity: SimilaritySettings | None = None) -> Self:
        """As the released code in all ten points; `similarity` where latents are not 64×64."""
        compared = similarity or SimilaritySettings()
        return cls(
            score_theta_min=False,
            order="released",
            halves="both",
            detection=DetectionSettings.released(),
            similarity=replace(compared, kind="ms_ssim", data_range="batch"),
            name="released",
        )

    @classmethod
    def paper(cls, similarity: SimilaritySettings | None = None) -> Self:
        """As the text in all ten points, Algorithm 2 with the |z| of its explanation."""
        return cls(
            detection=DetectionSettings.paper(),
            similarity=replace(similarity or SimilaritySettings(), kind="ssim"),
            name="paper",
        )
