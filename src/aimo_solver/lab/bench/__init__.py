"""Benchmarks of kernels, engine, boot, read-ahead and parsers, each against an alternative in the same run.

Never in the notebook.

May import: chat, policy, server, kernels, log, solve, lab.report.
"""

__all__ = ["boot", "decode", "decode_server", "degenerate", "engine", "kernels", "loop", "parse", "readahead", "table"]
