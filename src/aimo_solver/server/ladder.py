"""The ladder of server starts: a failure is answered by the smallest change of the command line that can help.

Changes add up, and a command that served is kept for later restarts. The share of GPU memory is never raised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aimo_solver.server.failures import Failure, FailureCause
from aimo_solver.server.flags import Adjustments, Graphs
from aimo_solver.server.launch import LaunchPlan

_SHARE_STEP = 0.06  # of the GPU's memory, 4.8 GB on an H100
_LEAST_SHARE = 0.5  # it is not lowered further, unless the server reports how much is free
_LEAST_CONTEXT = 16_384

_Change = Callable[[LaunchPlan, Failure], tuple[Adjustments, str]]


def next_plan(plan: LaunchPlan, failure: Failure, *, last: bool, port: int) -> LaunchPlan:
    """Returns the plan of the next start; the last of its `adjustments.steps` states what was changed and why.

    The plan is returned as it is if nothing is left to change.

    Args:
        last: no further start follows, so all that can be left out is left out, unless the cause has nothing to do with it.
        port: a free one, in case the current one is taken.
    """
    if failure.cause in (FailureCause.NOT_STARTED, FailureCause.MEASURED):
        return plan
    if failure.cause is FailureCause.PORT:
        return replace(plan, port=port, adjustments=_noted(plan.adjustments, "another port", failure))
    for change in (*_ANSWERS.get(failure.cause, ()), *_OTHERS):
        adjusted, step = change(plan, failure)
        lower = replace(plan, adjustments=_noted(adjusted, step, failure))
        if lower.command != plan.command:
            return safest(lower, failure) if last else lower
    return safest(plan, failure) if last else plan


def safest(plan: LaunchPlan, failure: Failure) -> LaunchPlan:
    """Returns the plan with less memory and context, and without drafts, graphs, compilation, fork and plugin."""
    lowest = plan
    for change in (_less_memory, _smaller_context, _no_speculation, _no_graphs, _no_fork, _no_plugin):
        lowest = replace(lowest, adjustments=change(lowest, replace(failure, memory_share=None, context_tokens=None))[0])
    if lowest.command == plan.command:
        return plan
    return replace(lowest, adjustments=_noted(lowest.adjustments, "the safest flags", failure))


def _noted(adjustments: Adjustments, step: str, failure: Failure) -> Adjustments:
    return replace(adjustments, steps=(*adjustments.steps, f"{step} ({failure.cause.value})"))


def _drop_flags(plan: LaunchPlan, failure: Failure) -> tuple[Adjustments, str]:
    dropped = plan.adjustments.dropped | set(failure.flags)
    return replace(plan.adjustments, dropped=dropped), f"without {' '.join(failure.flags)}"


def _less_memory(plan: LaunchPlan, failure: Failure) -> tuple[Adjustments, str]:
    """Lowers the memory share by one step, or to what was free if the server reports that."""
    flag = plan.flag("--gpu-memory-utilization")
    if flag is None or flag.value is None:
        return plan.adjustments, ""
    share = float(flag.value)
    if failure.memory_share is not None:
        lower = max(0.01, failure.memory_share)
    else:
        lower = share if plan.adjustments.memory_share is not None else max(_LEAST_SHARE, share - _SHARE_STEP)
    lower = int(lower * 100 + 1e-6) / 100  # down to whole per cent
    if lower >= share:
        return plan.adjustments, ""
    return replace(plan.adjustments, memory_share=lower), f"GPU memory share {share:g} -> {lower:g}"


def _smaller_context(plan: LaunchPlan, failure: Failure) -> tuple[Adjustments, str]:
    """Lowers the context to three quarters, or to what there is room for if the server reports that."""
    context = plan.context_tokens
    if failure.context_tokens is not None:
        lower = failure.context_tokens
    else:
        lower = context if plan.adjustments.context_tokens is not None else max(_LEAST_CONTEXT, context * 3 // 4)
    if not 0 < lower < context:
        return plan.adjustments, ""
    return replace(plan.adjustments, context_tokens=lower), f"context {context} -> {lower}"


def _fewer_graphs(plan: LaunchPlan, _: Failure) -> tuple[Adjustments, str]:
    fewer = Graphs.FEWER if plan.adjustments.graphs is Graphs.ALL else plan.adjustments.graphs
    return replace(plan.adjustments, graphs=fewer), "fewer graphs"


def _setting(step: str, **values: Any) -> _Change:
    return lambda plan, _: (replace(plan.adjustments, **values), step)


_marlin = _setting("experts by Marlin", moe_backend="marlin", plugin=False)  # either may be the cause; Marlin needs no plugin
_no_fork = _setting("no fork", fork=False)
_no_plugin = _setting("no plugin", plugin=False)
_no_speculation = _setting("no speculation", speculation=False)
_no_graphs = _setting("no graphs, no compilation", graphs=Graphs.NONE)

_ANSWERS: Mapping[FailureCause, tuple[_Change, ...]] = {
    FailureCause.FLAG: (_drop_flags,),
    FailureCause.LOADING_MEMORY: (_less_memory, _fewer_graphs, _smaller_context),
    FailureCause.CAPTURE_MEMORY: (_less_memory, _fewer_graphs, _smaller_context),
    FailureCause.CONTEXT: (_smaller_context, _fewer_graphs),
    FailureCause.DRAFT: (_no_speculation,),
    FailureCause.EXPERTS: (_marlin,),
    FailureCause.UNKNOWN: (_no_speculation, _no_plugin, _less_memory),
}
"""What can help against each cause, the smallest change first; then come `_OTHERS`."""

_OTHERS: tuple[_Change, ...] = (_no_fork, _no_plugin, _no_speculation, _fewer_graphs, _smaller_context, _no_graphs)
