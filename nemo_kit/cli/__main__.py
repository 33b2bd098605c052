"""``python -m nemo_kit.cli``: the command without its script."""

from nemo_kit.cli import main

main()
