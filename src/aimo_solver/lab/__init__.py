"""Replays, simulations and statistics of logged runs. Never in the notebook.

May import: policy, kernels, log.
"""

__all__ = [
    "comparison",
    "competition",
    "estimators",
    "extras",
    "forecast",
    "losses",
    "lost_problem",
    "power",
    "records",
    "replay",
    "run_statistics",
    "runs",
    "scoreboard",
    "simulate",
    "statistics",
    "statistics_tables",
    "symbolic",
    "throughput",
]
