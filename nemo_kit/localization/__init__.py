"""NeMo, Algorithms 1 to 4: detection, candidates, initial selection, refinement.

Scope: pure logic over functions of a model; nothing here imports diffusers.
- `differences`: noise differences of prompts and seeds (Algorithm 1)
- `detection`: the memorization score of prompts, and of those that calibrate its threshold
- `candidates`: out-of-distribution neurons (Algorithm 2)
- `scoring`: `score(sets)`, many neuron sets a denoiser call
- `search`: initial selection and refinement (Algorithms 3 and 4), in named search modes
- `nemo`, `result`: all of it for one prompt
Source: "Finding NeMo" (arXiv 2406.02366), section 3, and the authors' released code.
"""

from nemo_kit.calibration import ActivationStatistics, Calibration
from nemo_kit.localization.candidates import (
    candidates,
    mean_activations,
    text_activations,
    z_scores,
)
from nemo_kit.localization.detection import calibrate, detect
from nemo_kit.localization.differences import prompt_differences
from nemo_kit.localization.nemo import localize
from nemo_kit.localization.result import Localization
from nemo_kit.localization.scoring import Score
from nemo_kit.localization.search import SEARCHES, refine, select_initial
from nemo_kit.settings import DetectionSettings, LocalizationSettings, SimilaritySettings
