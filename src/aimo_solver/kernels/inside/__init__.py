"""The code that runs in the processes of the kernels: forkserver, monitor, isolation, and the IPython kernel itself.

`forkserver` is the entry point; the solver imports none of it. Modules other than `ipython` and `formatting` import the
standard library only.

May import: kernels.
"""
