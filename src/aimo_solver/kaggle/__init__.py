"""Serves Kaggle's gateway: `predict`, and the run behind it.

`gateway` answers in time whatever happens; `run` boots in the background and repeats what failed.

May import: policy, server, log, solve.
"""

__all__ = ["gateway", "local_gateway", "narrator", "notebook", "run"]
