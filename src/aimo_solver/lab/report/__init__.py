"""Reports of runs: the HTML page, tables in the terminal, and a live view. Never in the notebook.

May import: policy, log, lab.
"""

__all__ = ["command", "policy_plots", "statistics_plots", "timeline", "watch"]
