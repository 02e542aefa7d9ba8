"""Runs in the kernels' own processes: forkserver, monitor, isolation, and the Jupyter kernel itself.

Imports the standard library only until a kernel is forked; the solver imports none of it.

May import: kernels.
"""
