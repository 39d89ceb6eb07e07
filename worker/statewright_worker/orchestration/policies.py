"""Policies: which rules govern a transition, in which order."""

from abc import ABC, abstractmethod

from statewright.states import StateType
from statewright_worker.orchestration.rules.base import BaseOrchestrationRule, BaseUniversalTransform

Governing = type[BaseOrchestrationRule] | type[BaseUniversalTransform]
"""A rule class or a transform class."""


class BaseOrchestrationPolicy(ABC):
    """An ordered collection of governing logic.

    Source: `BaseOrchestrationPolicy` of the policies page. A user's own policy derives from it and is named in
    `STATEWRIGHT_FLOW_POLICY` or `STATEWRIGHT_TASK_POLICY`.
    """

    @staticmethod
    @abstractmethod
    def priority() -> list[Governing]:
        """Return the rules and transforms, the first one outermost. It is asked at each transition."""
        return []

    @classmethod
    def compile_transition_rules(
        cls, from_state: StateType | None = None, to_state: StateType | None = None
    ) -> list[Governing]:
        """Return those of the policy that govern the transition between these types, in order."""
        return [rule for rule in cls.priority() if from_state in rule.FROM_STATES and to_state in rule.TO_STATES]


def compiles_itself(policy: type[BaseOrchestrationPolicy]) -> bool:
    """Return whether a policy chooses the rules of a transition in a way of its own."""
    chosen, inherited = policy.compile_transition_rules, BaseOrchestrationPolicy.compile_transition_rules
    return getattr(chosen, "__func__", chosen) is not getattr(inherited, "__func__", inherited)
