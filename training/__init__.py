"""How the embedded models were made: corpus, planted neurons, training, report.

Not part of the wheel. `make lab` (``python -m training.build``) runs it all, from where it was
stopped, and ``make lab ARGS="--model lab-flow"`` trains the flow transformer on what that left;
`checkpoint/` holds the training of the next edition under way (``python -m training.checkpoint
restore`` puts it below runs/lab). Who only analyses a model needs nothing from here.
"""
