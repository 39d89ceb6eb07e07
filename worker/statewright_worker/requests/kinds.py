"""Which message is which kind of request: the one place where the kind is asked."""

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from statewright.protocol.requests import (
    CreateFlowRun,
    CreateTaskRun,
    DeleteRun,
    Explain,
    FindPosition,
    Heartbeat,
    OpenSubscription,
    Propose,
    PruneRuns,
    ReadEvents,
    ReadLimit,
    ReadLimits,
    ReadRun,
    ReadSubscription,
    ReadSubscriptions,
    ReadTimeline,
    ReadVerdict,
    RemoveSubscription,
    ResetSubscription,
    SetLimit,
    SettleDeadLetters,
    SyncSubscription,
    UpdateRun,
    WhatIf,
    Withdraw,
)
from statewright_worker.orchestration.records import TimerKind
from statewright_worker.requests.base import Kind
from statewright_worker.requests.cascade import FollowDown, FollowDownKind
from statewright_worker.requests.create_run import CreateRunKind
from statewright_worker.requests.deletions import DeleteRunKind, GoOnDeleting, GoOnDeletingKind, PruneRunsKind
from statewright_worker.requests.explain import ExplainKind
from statewright_worker.requests.heartbeat import HeartbeatKind
from statewright_worker.requests.leases import EndExecutor, EndExecutorKind, EndLease, EndLeaseKind
from statewright_worker.requests.limits import ReadLimitKind, ReadLimitsKind, SetLimitKind
from statewright_worker.requests.parking import KeepParked, KeepParkedKind, TellParked, TellParkedKind, WithdrawKind
from statewright_worker.requests.pauses import EndPause, EndPauseKind
from statewright_worker.requests.propose import ProposeKind
from statewright_worker.requests.read_events import FindPositionKind, ReadEventsKind
from statewright_worker.requests.read_run import ReadRunKind
from statewright_worker.requests.read_timeline import ReadTimelineKind
from statewright_worker.requests.read_verdict import ReadVerdictKind
from statewright_worker.requests.subscriptions import (
    OpenSubscriptionKind,
    ReadSubscriptionKind,
    ReadSubscriptionsKind,
    RemoveSubscriptionKind,
    ResetSubscriptionKind,
    SettleDeadLettersKind,
    SyncSubscriptionKind,
)
from statewright_worker.requests.update_run import UpdateRunKind
from statewright_worker.requests.what_if import WhatIfKind

_CREATE: Final = CreateRunKind()
_KINDS: Final[dict[type, Kind[Any]]] = {
    Propose: ProposeKind(),
    CreateFlowRun: _CREATE,
    CreateTaskRun: _CREATE,
    UpdateRun: UpdateRunKind(),
    DeleteRun: DeleteRunKind(),
    PruneRuns: PruneRunsKind(),
    ReadRun: ReadRunKind(),
    ReadEvents: ReadEventsKind(),
    ReadVerdict: ReadVerdictKind(),
    ReadTimeline: ReadTimelineKind(),
    Explain: ExplainKind(),
    WhatIf: WhatIfKind(),
    FindPosition: FindPositionKind(),
    SetLimit: SetLimitKind(),
    ReadLimit: ReadLimitKind(),
    ReadLimits: ReadLimitsKind(),
    Withdraw: WithdrawKind(),
    TellParked: TellParkedKind(),
    KeepParked: KeepParkedKind(),
    GoOnDeleting: GoOnDeletingKind(),
    FollowDown: FollowDownKind(),
    EndPause: EndPauseKind(),
    OpenSubscription: OpenSubscriptionKind(),
    SyncSubscription: SyncSubscriptionKind(),
    ReadSubscription: ReadSubscriptionKind(),
    ReadSubscriptions: ReadSubscriptionsKind(),
    RemoveSubscription: RemoveSubscriptionKind(),
    ResetSubscription: ResetSubscriptionKind(),
    SettleDeadLetters: SettleDeadLettersKind(),
    Heartbeat: HeartbeatKind(),
    EndLease: EndLeaseKind(),
    EndExecutor: EndExecutorKind(),
}
WHEN_DUE: Final[dict[TimerKind, Callable[[UUID], object]]] = {
    TimerKind.CASCADE: FollowDown,
    TimerKind.DELETION: GoOnDeleting,
    TimerKind.PAUSE: EndPause,
    TimerKind.LEASE: EndLease,
    TimerKind.EXECUTOR: EndExecutor,
}
"""What a timer asks for, by its kind: a request made of the timer's id. A parked proposal is its own request."""


def kind_of(request: object) -> Kind[Any]:
    """Return the kind of the request."""
    # By its exact type: isinstance takes long with pydantic's classes.
    return _KINDS[type(request)]
