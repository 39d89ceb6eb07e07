"""Statewright: propose states, await verdicts, hear of every change."""

from statewright.client import Client, Proposal
from statewright.client.leases import Executor, KeepAlive
from statewright.client.queries import RunFilters
from statewright.client.sent import Sent, SentCreation, SentProposal, SentRun
from statewright.errors import (
    ConfigurationError,
    Delivery,
    EraBegan,
    EventsMissed,
    InvalidMessage,
    InvalidRequest,
    LeaseLost,
    MessageTooLarge,
    NoAnswer,
    NotOpen,
    NotWritable,
    Overloaded,
    PartitionCountMismatch,
    ProposalConflict,
    QueryFailed,
    QueryTooSlow,
    RedisUnavailable,
    RequestFailed,
    RuleFailed,
    RunConflict,
    RunNotFound,
    StatewrightError,
    UnreadableAnswer,
)
from statewright.events import Event
from statewright.limits import ConcurrencyLimit, LimitScope, SlotHolder, Waiter
from statewright.overview import PartitionStatus, Place, RunPage, RunTree, StateCount, WorkerStatus
from statewright.protocol.replies import ParkedReply
from statewright.runs import FlowRun, RunHistory, RunKind, RunPolicy, TaskRun
from statewright.states import TERMINAL_STATES, ProposedState, State, StateDetails, StateType
from statewright.subscription import Subscription
from statewright.verdicts import SetStateStatus, Verdict

__all__ = [
    "TERMINAL_STATES",
    "Client",
    "ConcurrencyLimit",
    "ConfigurationError",
    "Delivery",
    "EraBegan",
    "Event",
    "EventsMissed",
    "Executor",
    "FlowRun",
    "InvalidMessage",
    "InvalidRequest",
    "KeepAlive",
    "LeaseLost",
    "LimitScope",
    "MessageTooLarge",
    "NoAnswer",
    "NotOpen",
    "NotWritable",
    "Overloaded",
    "ParkedReply",
    "PartitionCountMismatch",
    "PartitionStatus",
    "Place",
    "Proposal",
    "ProposalConflict",
    "ProposedState",
    "QueryFailed",
    "QueryTooSlow",
    "RedisUnavailable",
    "RequestFailed",
    "RuleFailed",
    "RunConflict",
    "RunFilters",
    "RunHistory",
    "RunKind",
    "RunNotFound",
    "RunPage",
    "RunPolicy",
    "RunTree",
    "Sent",
    "SentCreation",
    "SentProposal",
    "SentRun",
    "SetStateStatus",
    "SlotHolder",
    "State",
    "StateCount",
    "StateDetails",
    "StateType",
    "StatewrightError",
    "Subscription",
    "TaskRun",
    "UnreadableAnswer",
    "Verdict",
    "Waiter",
    "WorkerStatus",
]
