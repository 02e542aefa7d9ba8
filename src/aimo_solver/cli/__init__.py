"""The command line; `main` lists the commands. Never in the notebook.

May import: chat, policy, server, log, solve, lab, lab.bench, lab.export, lab.report.
"""
