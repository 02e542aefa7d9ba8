"""Replays, simulations and statistics of logged runs. Never in the notebook.

May import: policy, log.
"""

__all__ = ["estimators", "extras", "losses", "lost_problem", "power", "records", "replay", "scoreboard", "simulate", "statistics"]
