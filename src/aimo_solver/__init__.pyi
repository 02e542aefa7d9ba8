"""The types of the names that `aimo_solver` loads on demand."""

from aimo_solver.log.reader import RunRecord as RunRecord
from aimo_solver.log.reader import read_run as read_run
