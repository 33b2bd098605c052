"""Runs over prompts that survive: one shard a prompt, found again by the content of its key.

Scope: a function for each item, here, in worker processes or on a cluster, into a store of parquet
files; whatever is killed, torn or full, the same call goes on where it stopped.
- `sweep`: `run`, for any function of one item
- `method`: `detect_all`, `localize_all`, `generate_all`
- `store`: shards; `work`: what is sent to a worker; `executors`: where it runs
"""

from nemo_kit.prompts import prompt_rows, prompt_table
from nemo_kit.store.method import detect_all, generate_all, localize_all
from nemo_kit.store.sweep import Sweep, run
from nemo_kit.store.work import Keyed, ModelRef, model_key

__all__ = [
    "Keyed",
    "ModelRef",
    "Sweep",
    "detect_all",
    "generate_all",
    "localize_all",
    "model_key",
    "prompt_rows",
    "prompt_table",
    "run",
]
