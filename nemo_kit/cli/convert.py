"""``nemo-kit convert``: results of localization from and to the released code's CSV."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemo_kit.cli.options import existing, writer

if TYPE_CHECKING:
    import pandas as pd


def register(app: typer.Typer) -> None:
    """Add this command to the app."""
    app.command(short_help="Turn results into the released form, or back.")(convert)


def convert(
    results: Annotated[
        Path,
        typer.Argument(metavar="RESULTS",
                       help="A result CSV of the released code, or a .parquet or .csv file that "
                       "nemo-kit localize --out wrote."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Write to this .csv or .parquet file.")
    ],
    released: Annotated[
        bool, typer.Option("--released", help="Write the released code's form (.csv).")
    ] = False,
) -> None:  # fmt: skip
    """Turn results of the released code into a table of ours, or the other way round."""
    from nemo_kit.experiments import write_released

    write = writer(out)
    frame = _read(existing([results], "RESULTS")[0])
    if lacking := {"prompt", "initial", "refined"} - set(frame):
        raise ValueError(f"{results} is no table of results: it lacks {sorted(lacking)}")
    if not released:
        write(_as_text(frame))
        return
    if out.suffix != ".csv":
        raise ValueError(f"--released needs --out FILE.csv, got {out}")
    write_released(out, frame, frame if "url" in frame else None)


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    from nemo_kit.experiments import read_released
    from nemo_kit.tables import read_csv

    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    texts = read_csv(path)
    if "Initial Neurons" in texts:
        return read_released(path)
    named = [name for name in ("prompt", "url") if name in texts]  # "None" and "NA" are prompts
    if len(named) == len(texts.columns):
        return texts
    numbers = io.StringIO(texts.drop(columns=named).to_csv(index=False))
    return pd.read_csv(numbers).assign(**texts[named])[list(texts)]


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Neuron sets as JSON, as nemo-kit localize writes them."""
    sets = {n: [s if isinstance(s, str) else s.to_json() for s in frame[n]]
            for n in ("initial", "refined") if n in frame}  # fmt: skip
    return frame.assign(**sets)
