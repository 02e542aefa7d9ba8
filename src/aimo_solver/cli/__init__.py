"""The command line: `aimo-solver evaluate | replay | report | watch | export | bench | cache | serve`. Never in the notebook.

May import: policy, server, log, solve, lab, lab.bench, lab.export, lab.report.
"""
