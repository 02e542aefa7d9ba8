"""Shows a run: the page, the terminal tables, and a live view of one that is going on. Never in the notebook.

May import: policy, log, lab.
"""

__all__ = ["command", "policy_plots", "timeline", "watch"]
