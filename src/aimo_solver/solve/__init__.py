"""Solves problems: concurrent attempts, votes, and an answer in time.

Start reading at `solver`, then `attempt`, then `conversation`. `session` brings up what they need; `evaluate` runs many problems.

May import: chat, policy, server, kernels, log.
"""

__all__ = ["attempt", "doctor", "endpoint", "evaluate", "session", "solver"]
