"""Learns from runs: replays, simulations, statistics. Never in the notebook.

May import: chat, policy, log.
"""

__all__ = ["calibration", "competition", "records", "replay", "scoreboard", "simulate", "statistics"]
