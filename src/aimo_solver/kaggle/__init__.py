"""Serves Kaggle's gateway: `predict`, and the run that solves the problems behind it.

`gateway` returns an answer in time, whatever fails; `run` boots in the background and repeats a boot that failed; `rehearsal`
runs the notebook outside the competition and says whether it is fit to be submitted.

May import: policy, server, log, solve.
"""

__all__ = ["gateway", "notebook", "observer", "rehearsal", "run"]
