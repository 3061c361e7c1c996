"""A method's own strategy: what its proposals say of it, and how it sees the others' trials."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from raymix.core.codec import encode, to_spec
from raymix.core.errors import StudyError
from raymix.core.job import Json, Spec
from raymix.core.trial import History, Proposal, Trial
from raymix.study.plan import Method, Plan


def own_strategy(plan: Plan, method: Method) -> Spec | None:
    """The strategy of `method` where it is not the study's; None: it is."""
    if method.strategy is None:
        return None
    own = to_spec(method.strategy)
    return None if _same(own, to_spec(plan.strategy)) else own


def seen_from(history: History, plan: Plan, method: Method) -> History:
    """The history as `method` may read it: no strategy means its own, whatever that is.

    So what was trained in another order than its proposals are, a baseline in the study's, is told
    apart from its own trials by having a strategy.
    """
    own = own_strategy(plan, method)
    if own is None:
        return history
    study = to_spec(plan.strategy)

    def told(trial: Trial) -> Trial:
        order = trial.proposal.strategy or study
        plain = None if _same(order, own) else order
        return replace(trial, proposal=replace(trial.proposal, strategy=plain))

    return replace(history, trials=tuple(told(trial) for trial in history))


def ordered(proposal: Proposal, plan: Plan, method: Method) -> Proposal:
    """What `method` proposes, with its strategy where the searcher names none.

    Numbers that the strategy has anyway are left out: said or not, it is the same training, and is
    to be known as such.
    """
    if proposal.strategy is not None:
        return proposal
    strategy = method.strategy or plan.strategy
    told = {n: v for n, v in proposal.params.items() if getattr(strategy, n, None) != v}
    return replace(proposal, strategy=own_strategy(plan, method), params=told)


def orders(plan: Plan) -> dict[str, Json]:
    """The strategy of each method that has one of its own, by the method's name."""
    found = {method.name: own_strategy(plan, method) for method in plan.methods}
    return {name: encode(spec) for name, spec in found.items() if spec is not None}


def check_orders(plan: Plan, before: Mapping[str, Json], asked: Collection[str]) -> None:
    """Refuse to go on with a method whose strategy has changed: its trials would not compare.

    `before`: what `orders` was; `asked`: the methods that have asked for something.

    Raises:
        StudyError: names the method.
    """
    now = orders(plan)
    for method in plan.methods:
        if method.name in asked and before.get(method.name) != now.get(method.name):
            raise StudyError(
                f"method '{method.name}' was asked with another strategy than now: give it "
                "another name to begin anew"
            )


def _same(one: Spec | None, other: Spec | None) -> bool:
    """Whether they are one strategy; a tuple is a list once it has been in a file."""
    return bool(encode(one) == encode(other))
