"""``nemo-kit detect`` and ``nemo-kit localize``: the method on prompts, given or from a file.

Prompts of the command line are worked on and shown; those of files go through a store, here or in
other processes, so that a long run can be stopped, killed and gone on with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from nemo_kit.cli import options

if TYPE_CHECKING:
    import pandas as pd

    from nemo_kit.calibration import Calibration

Preset = Literal["default", "released", "paper"]


@dataclass(frozen=True)
class Asked(options.Kept, options.Model):
    """What both commands are asked: prompts, a model, how to decide, where, and by whom."""

    # fmt: off
    prompt: Annotated[list[str] | None, Argument(metavar="PROMPT",
        help="Prompts to look at.")] = None
    prompts: options.Files = None
    seeds: options.Seeds = 10
    threshold: Annotated[float | None, Option(metavar="X", help="Score above which a prompt is "
        "flagged; by default the one that came with the model.")] = None
    settings: Annotated[Preset, Option(help='"released" follows the released code in all ten '
        'points where it differs from the paper, "paper" the text; recorded in the '
        "results.")] = "default"
    hold_out: Annotated[Path | None, Option(**options.FILE, help="File with prompts that the model "
        "does not memorize, to compute the threshold of --settings from, in place of the model's "
        "own if it has one.")] = None
    workers: Annotated[int, Option(metavar="N", min=1, help="Processes on this machine; on GPUs, "
        "one for each GPU. Only for prompts of files.")] = 1
    scheduler: Annotated[str | None, Option(metavar="ADDRESS", help="Address of a dask scheduler "
        "(tcp://HOST:PORT) or its scheduler file (.json): the work is done by its workers. "
        "docs/cluster.md has a recipe for SLURM.")] = None
    as_json: Annotated[bool, Option("--json", help="Print JSON, one object a prompt.")] = False
    out: Annotated[Path | None, Option(dir_okay=False, metavar="FILE", help="Write the table to "
        "this .csv or .parquet file.")] = None
    # fmt: on

    @property
    def here(self) -> bool:
        """Whether prompts are of the command line alone: worked on and shown, and not kept."""
        return bool(self.prompt) and not self.prompts

    @property
    def on_gpus(self) -> bool:
        """Whether other processes work on GPUs; what a scheduler has, --device cuda must say."""
        from nemo_kit.models import default_device

        seen = self.scheduler is None and self.device == "auto" and default_device().type == "cuda"
        elsewhere = self.workers > 1 or self.scheduler is not None
        return elsewhere and (self.device == "cuda" or seen)

    def check(self) -> None:
        """Raise ValueError for what can't be written, or not be done by other processes."""
        if self.out is not None:
            if self.out.suffix not in {".csv", ".parquet"}:
                raise ValueError(f"--out must end in .csv or .parquet, got {self.out}")
            if not (folder := self.out.resolve().parent).is_dir():
                raise ValueError(f"--out: there is no folder {folder}")
            options.writable(folder, "--out")
        if self.hold_out and self.threshold is not None:
            raise ValueError(
                "--hold-out computes the threshold that --threshold gives: one of them, got both"
            )
        for name, given in (("workers", self.workers), ("scheduler", self.scheduler)):
            if self.here and given not in (1, None):
                raise ValueError(
                    f"--{name} {given} needs --prompts FILE: prompts of the command line are "
                    "worked on in this process"
                )
        if self.hold_out and self.on_gpus:
            raise ValueError(
                "--hold-out computes the threshold in this process, which leaves the GPUs to the "
                "workers: write it once with `nemo-kit calibrate --hold-out FILE`, or give "
                "--threshold"
            )

    def texts(self) -> list[str]:
        """All prompts, each once; the lab's own where there are none."""
        from nemo_kit import lab

        if not (self.prompt or self.prompts) and self.model not in lab.TABLES:
            raise ValueError("a PROMPT is needed, or --prompts FILE")
        found = [*(self.prompt or ()), *options.read(self.prompts)]
        if any(not text.strip() for text in found):
            raise ValueError("a PROMPT must not be empty")
        return list(dict.fromkeys(found or lab.prompts(model=self.model)["prompt"]))

    def open_here(self) -> Any:
        """The model; where other processes use GPUs, it is opened here without taking one."""
        if not self.on_gpus:
            return self.open()
        import torch

        from nemo_kit.models import default_dtype
        from nemo_kit.store.work import check_gpus

        check_gpus("cuda", self.workers)
        gpus = default_dtype(torch.device("cuda"))
        return self.open("cpu", gpus if self.dtype == "auto" else None)

    def rows(self, command: str, given: Callable[[Any], dict[str, Any]]) -> pd.DataFrame:
        """A row a prompt, from here or the store; `given`, the method's options by the settings."""
        from nemo_kit.presets import calibration_for, preset
        from nemo_kit.store import ModelRef, detect_all, localize_all
        from nemo_kit.store import method as work

        self.check()
        texts, seeds = self.texts(), range(1, self.seeds + 1)
        loaded = self.open_here()
        chosen = preset(self.settings, loaded)
        if self.threshold is None:  # the model gets the one that belongs to the settings
            held = options.read(self.hold_out and [self.hold_out])
            with options.counted("threshold") as told:
                loaded.calibration = calibration_for(loaded, chosen, held, seeds, self.store, told)
        _tell_false_alarms(loaded.calibration, chosen, self.threshold)
        how = given(chosen) | {"threshold": self.threshold}
        if self.here:
            one = {"detect": work.detected, "localize": work.localized}[command]
            return self.one_by_one(command, texts, lambda text: one(loaded, text, [*seeds], **how))
        if self.on_gpus:
            loaded = ModelRef.of(loaded, "cuda")
        every = {"detect": detect_all, "localize": localize_all}[command]
        with self.running():
            return every(
                loaded, texts, seeds, store=self.store, workers=self.workers,
                executor=self.scheduler, retry_failed=self.retry_failed,
                progress=not self.as_json, **how,
            )  # fmt: skip

    def one_by_one(self, command: str, texts: list[str], work: Callable[..., Any]) -> pd.DataFrame:
        """Without a store: a prompt that fails ends the command, and Ctrl-C keeps nothing."""
        import pandas as pd
        from tqdm import tqdm

        hidden = self.as_json or len(texts) < 2
        kept = "nothing is kept of prompts on the command line; those of --prompts FILE would be"
        bar = tqdm(texts, command, unit="prompt", disable=hidden)
        with options.interruptible(kept), bar:
            return pd.concat([work(text) for text in bar], ignore_index=True)

    def show(self, frame: pd.DataFrame, columns: list[str], released: bool = False) -> None:
        """Print a table or JSON, and write the file; exit code 1 where prompts failed."""
        from nemo_kit.files import write_table
        from nemo_kit.neuron_files import write_released
        from nemo_kit.prompts import prompt_rows

        if self.as_json:
            for row in json.loads(frame.to_json(orient="records")):
                print(json.dumps(_opened(row), ensure_ascii=False))
        else:
            shown = frame[[name for name in columns if name in frame]]
            print(shown.to_string(index=False, float_format="{:.3f}".format, max_colwidth=100))
        if released:
            write_released(self.out, frame, prompt_rows(self.prompts) if self.prompts else None)
        elif self.out is not None:
            write_table(self.out, frame)
        options.end(frame)


def _opened(row: Mapping[str, Any]) -> dict[str, Any]:
    """Columns that hold JSON text as JSON."""
    nested = {"initial", "refined", "settings", "kept_seeds"}
    return {k: json.loads(v) if k in nested and isinstance(v, str) else v for k, v in row.items()}


def detect(*, asked: Asked) -> None:
    """Tell which prompts a model memorizes, from one prediction a seed.

    The score is the largest similarity between the noise predictions of two seeds: a memorized
    prompt pulls every seed to the same picture. With neither prompts nor a file, and the model
    lab, the lab's own prompts are taken.
    """
    frame = asked.rows(
        "detect", lambda chosen: {"settings": chosen.detection, "similarity": chosen.similarity}
    )
    frame = frame.drop(columns=["pairwise"], errors="ignore")
    asked.show(frame, ["flagged", "score", "prompt"])


# fmt: off
def localize(
    *,
    asked: Asked,
    search: Annotated[str, Option(metavar="MODE", help='How to search: "speculative" gives the '
        'paper\'s sets, batched; "sequential" is call by call; "bisect" and "attributed" are '
        "cheaper and verified.")] = "speculative",
    statistics: options.Statistics = None,
    released: Annotated[bool, Option("--released", help="Write --out FILE.csv in the released "
        "code's form.")] = False,
) -> None:
    # fmt: on
    """Find the neurons by which a model memorizes the image of a prompt.

    Prints layer and index of each neuron; layers are numbered from 1 as in the paper. A prompt
    that is not flagged has none. Hard prompts take minutes. Prompts of --prompts files go
    through --store: run the same command again and it goes on where it stopped.
    """
    from nemo_kit.calibration import ActivationStatistics
    from nemo_kit.localization.search import find_search

    if not asked.prompt and not asked.prompts:
        raise ValueError("localize needs a PROMPT, or --prompts FILE")
    find_search(search)
    if released and (asked.out is None or asked.out.suffix != ".csv"):
        raise ValueError(f"--released needs --out FILE.csv, got {asked.out}")
    given = {"search": search, "statistics": statistics and ActivationStatistics.load(statistics)}
    frame = asked.rows("localize", lambda chosen: given | {"settings": chosen})
    texts = {name: [one if isinstance(one, str) else one.to_json() for one in frame[name]]
             for name in ("initial", "refined")}  # fmt: skip
    frame = frame.assign(**texts)
    columns = ["flagged", "score", "n_initial", "n_refined", "refined", "prompt"]
    asked.show(frame, columns, released)


def _tell_false_alarms(own: Calibration | None, chosen: Any, threshold: float | None) -> None:
    """Say what share is expected to be flagged of prompts that are not memorized, where known."""
    from nemo_kit.calibration import resolve

    if own is None or not own.holds(*resolve(own, chosen.detection, chosen.similarity)):
        return
    share, limit = own.false_alarms(threshold), own.threshold if threshold is None else threshold
    if share is not None:
        print(f"nemo-kit: flagged is what scores above {limit:.3f}; of prompts that are not "
              f"memorized {share:.0%} are expected to", file=sys.stderr)  # fmt: skip
