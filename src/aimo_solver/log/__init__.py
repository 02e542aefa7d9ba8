"""Writes a run directory during the run, and reads it back.

`writer` and `trajectory` write, `reader` reads, `resume` continues an interrupted run; docs/run-directory.md has every field.

May import: nothing but the top-level modules.
"""

__all__ = ["files", "reader", "resume", "trajectory", "writer"]
