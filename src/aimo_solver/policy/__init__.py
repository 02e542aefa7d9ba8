"""Decisions: which answer wins, when to stop, how many seconds and attempts a problem gets, whether to ask the model again.

Pure functions: no clock, no files, no engine. Time and data are arguments.

May import: chat.
"""

__all__ = ["budget", "loops", "pace", "selection", "stopping", "voting"]
