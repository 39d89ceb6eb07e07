"""Statewright: propose states, await verdicts, hear of every change."""

from statewright.client import Client, Proposal
from statewright.client.leases import Executor, KeepAlive
from statewright.client.sent import Sent, SentCreation, SentProposal, SentRun
from statewright.errors import (
    ConfigurationError,
    Delivery,
    EraBegan,
    EventsMissed,
    Forbidden,
    InvalidMessage,
    InvalidRequest,
    LeaseLost,
    MemberReplaced,
    MessageTooLarge,
    NoAnswer,
    NotOpen,
    NotPermitted,
    NotWritable,
    Overloaded,
    PartitionCountMismatch,
    ProposalConflict,
    RedisUnavailable,
    RequestFailed,
    RuleFailed,
    RunConflict,
    RunNotFound,
    StatewrightError,
    SubscriptionConflict,
    SubscriptionNotFound,
    UnreadableAnswer,
)
from statewright.events import Event
from statewright.explanations import Explanation, Timeline
from statewright.limits import ConcurrencyLimit, LimitScope, SlotHolder, Waiter
from statewright.protocol.replies import ParkedReply
from statewright.runs import FlowRun, RunHistory, RunKind, RunPolicy, TaskRun
from statewright.states import TERMINAL_STATES, ProposedState, State, StateDetails, StateType
from statewright.subscription.filters import EventFilter
from statewright.subscription.groups import NamedSubscription
from statewright.subscription.status import DeadLetter, MemberStatus, ShareStatus, SubscriptionStatus
from statewright.subscription.unnamed import Subscription
from statewright.verdicts import SetStateStatus, Verdict

__all__ = [
    "TERMINAL_STATES",
    "Client",
    "ConcurrencyLimit",
    "ConfigurationError",
    "DeadLetter",
    "Delivery",
    "EraBegan",
    "Event",
    "EventFilter",
    "EventsMissed",
    "Executor",
    "Explanation",
    "FlowRun",
    "Forbidden",
    "InvalidMessage",
    "InvalidRequest",
    "KeepAlive",
    "LeaseLost",
    "LimitScope",
    "MemberReplaced",
    "MemberStatus",
    "MessageTooLarge",
    "NamedSubscription",
    "NoAnswer",
    "NotOpen",
    "NotPermitted",
    "NotWritable",
    "Overloaded",
    "ParkedReply",
    "PartitionCountMismatch",
    "Proposal",
    "ProposalConflict",
    "ProposedState",
    "RedisUnavailable",
    "RequestFailed",
    "RuleFailed",
    "RunConflict",
    "RunHistory",
    "RunKind",
    "RunNotFound",
    "RunPolicy",
    "Sent",
    "SentCreation",
    "SentProposal",
    "SentRun",
    "SetStateStatus",
    "ShareStatus",
    "SlotHolder",
    "State",
    "StateDetails",
    "StateType",
    "StatewrightError",
    "Subscription",
    "SubscriptionConflict",
    "SubscriptionNotFound",
    "SubscriptionStatus",
    "TaskRun",
    "Timeline",
    "UnreadableAnswer",
    "Verdict",
    "Waiter",
]
