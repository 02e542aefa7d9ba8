"""Decides: which answer wins, when to stop, how long a problem may take, whether to ask again.

Pure: no clock, no file, no engine. Time and data come in as arguments.

May import: chat.
"""

__all__ = ["budget", "selection", "stopping", "voting"]
