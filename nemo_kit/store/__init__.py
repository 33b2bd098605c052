"""Runs over prompts that survive: rows in parquet shards, found again by the content of their key.

Scope: a function for each item, here, in worker processes or on a cluster, into a store of parquet
files; whatever is killed, torn or full, the same call goes on where it stopped.
- `runs`: `run`, for any function of one item
- `method`: `detect_all`, `localize_all`, `generate_all`
- `shards`: the files; `executors`: where items are worked on; `work`: the model there
"""

from nemo_kit.prompts import prompt_rows, prompt_table
from nemo_kit.store.method import detect_all, generate_all, localize_all
from nemo_kit.store.runs import Sweep, run, tidy
from nemo_kit.store.work import ModelRef, model_key
