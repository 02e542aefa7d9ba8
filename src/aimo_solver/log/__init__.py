"""Writes a run down as it happens, and reads it back.

`writer` and `trajectory` write, `reader` reads; docs/run-directory.md describes every file and field.

May import: nothing but the top.
"""

__all__ = ["environment", "lock", "reader", "trajectory", "writer"]
