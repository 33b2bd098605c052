"""How the embedded models were made: corpus, planted neurons, training, report.

Not part of the wheel. `make lab` (``python -m training.build``) runs it all; who only analyses a
model needs nothing from here.
"""
