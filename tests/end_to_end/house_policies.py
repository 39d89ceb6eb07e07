"""Policies of a user's own, as tests name them in the settings."""

import asyncio
import os
import signal
import time
from typing import Any

from sqlalchemy import text

from statewright import State, StateType
from statewright_worker.orchestration import BaseOrchestrationPolicy, BaseOrchestrationRule, Fact
from statewright_worker.orchestration.core_policy import CoreFlowPolicy
from statewright_worker.orchestration.policies import Governing


class SpendBudget(BaseOrchestrationRule):
    """Takes 1 off the budget in the user's own table, and rejects RUNNING when nothing is left."""

    FROM_STATES = frozenset({None, StateType.PENDING})
    TO_STATES = frozenset({StateType.RUNNING})

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        left = await context.session.scalar(text("UPDATE budget SET amount = amount - 1 RETURNING amount"))
        self.saw(left=left)
        if left < 0:
            await self.abort_transition("The budget is spent.")
            await context.session.execute(text("UPDATE budget SET amount = 0"))
        await context.session.commit()

    async def cleanup(self, initial_state: Any, validated_state: Any, context: Any) -> None:
        await context.session.execute(text("UPDATE budget SET amount = amount + 1"))


class Misbehave(BaseOrchestrationRule):
    """Does what the run's name says, once it is proposed to run."""

    FROM_STATES = frozenset({None, StateType.PENDING})
    TO_STATES = frozenset({StateType.RUNNING})

    async def after_transition(self, initial_state: Any, validated_state: Any, context: Any) -> None:
        if validated_state.data is not None:
            validated_state.data["late"] = object()

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        match context.run.name:
            case "raise":
                raise ZeroDivisionError("by design")
            case "slow":
                await asyncio.sleep(3_600)
            case "fizzle":
                await self.reject_transition(State.pending(), "Not yet.")
            case "stay":
                await self.reject_transition(initial_state, "Not now.")
            case "copy":
                proposed_state.data["secret"] = "spoiled"
                changed = proposed_state.model_copy()
                changed.name = "Changed"
                changed.data = {"rows": [1]}
                await self.reject_transition(changed, "Not so.")
                changed.data["rows"].append(object())
            case "spoil":
                proposed_state.data["secret"] = object()
            case "bad sql":
                await context.session.execute(text("SELECT * FROM nowhere"))
            case "slow sql":
                await context.session.execute(text("SELECT pg_sleep(3600)"))


class HouseFlowPolicy(BaseOrchestrationPolicy):
    """The budget first, so that whatever happens later must be undone in it."""

    @staticmethod
    def priority() -> list[Governing]:
        return [SpendBudget, Misbehave, *CoreFlowPolicy.priority()]


class StayOutOfWhatIsInUse(BaseOrchestrationRule):
    """Keeps a flow run from PENDING while a limit on its tags is full: no rule of Statewright's asks about them."""

    FROM_STATES = frozenset({None})
    TO_STATES = frozenset({StateType.PENDING})
    NEEDS = (Fact.LIMITS,)

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        for limit in context.unit_of_work.limits_on(context.run.tags):
            if not limit.has_room_for(context.run.id):
                await self.abort_transition(f"{limit.key} is in use by {limit.slots_held}.")


class ConsiderateFlowPolicy(BaseOrchestrationPolicy):
    """The default rules, and before them one that asks for limits."""

    @staticmethod
    def priority() -> list[Governing]:
        return [StayOutOfWhatIsInUse, *CoreFlowPolicy.priority()]


class Harm(BaseOrchestrationRule):
    """Harms its worker as the run's name says: no limit of time reaches it."""

    FROM_STATES = frozenset({None})
    TO_STATES = frozenset({StateType.RUNNING})

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        match context.run.name:
            case "blocks":
                time.sleep(6)  # noqa: ASYNC251  # what a careless rule does
            case "hangs":
                time.sleep(60)  # noqa: ASYNC251  # for as long as a loop may seem dead
            case "kills":
                os.kill(os.getpid(), signal.SIGKILL)


class HarmfulFlowPolicy(BaseOrchestrationPolicy):
    """The default rules, and before them one that may harm its worker."""

    @staticmethod
    def priority() -> list[Governing]:
        return [Harm, *CoreFlowPolicy.priority()]


class RetryCrashed(BaseOrchestrationRule):
    """Sends what crashes to another attempt, or fails at it, as the run's name says."""

    FROM_STATES = frozenset({StateType.RUNNING})
    TO_STATES = frozenset({StateType.CRASHED})

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        match context.run.name:
            case "retry":
                retry = State.awaiting_retry(context.now, message=proposed_state.message)
                await self.reject_transition(retry, "Retrying")
            case "raise":
                raise ZeroDivisionError("by design")
            case "stay":
                await self.abort_transition("It may go on.")
            case "slow sql":
                await context.session.execute(text("SELECT pg_sleep(3600)"))


class RetryingFlowPolicy(BaseOrchestrationPolicy):
    """The default rules, and before them one about what crashes."""

    @staticmethod
    def priority() -> list[Governing]:
        return [RetryCrashed, *CoreFlowPolicy.priority()]
