"""A mix is what its name says, and its task runs abide by their verdicts."""

from statewright import ProposedState, SetStateStatus, StateType, Verdict
from statewright.ids import IdSource
from statewright_worker.bench.mixes import Mixer, Task, limit_for, states
from statewright_worker.bench.options import Load, Mix

IDS = IdSource()
ACCEPTED = Verdict(proposal_id=IDS.new(), run_id=IDS.new(), status=SetStateStatus.ACCEPT)


def proposed_for(task: Task, *statuses: SetStateStatus) -> list[StateType]:
    """Return what is proposed when the verdicts are these, and ACCEPT from then on."""
    answers = list(statuses)
    proposed: list[StateType] = []
    step: ProposedState | None = next(task.states)
    while step is not None:
        proposed.append(step.type)
        status = answers.pop(0) if answers else SetStateStatus.ACCEPT
        verdict = Verdict(proposal_id=IDS.new(), run_id=IDS.new(), status=status)
        try:
            step = task.states.send(verdict)
        except StopIteration:
            step = None
    return proposed


def test_a_task_run_that_is_not_let_run_is_done_with() -> None:
    accepted, waits = SetStateStatus.ACCEPT, SetStateStatus.WAIT
    assert proposed_for(Task(states(None, fails=False, on_cached=print)), accepted, waits) == ["PENDING", "RUNNING"]


def test_a_failing_task_run_is_retried() -> None:
    keys: list[str] = []
    task = Task(states("key", fails=True, on_cached=keys.append))
    answers = [SetStateStatus.ACCEPT, SetStateStatus.ACCEPT, SetStateStatus.REJECT]
    assert proposed_for(task, *answers) == ["PENDING", "RUNNING", "FAILED", "RUNNING", "COMPLETED"]
    assert keys == ["key"]


def test_a_mix_has_what_its_name_says() -> None:
    plain, limits, full = (Mixer(mix) for mix in (Mix.PLAIN, Mix.LIMITS, Mix.FULL))
    assert {plain.task().tags for _ in range(20)} == {()}
    assert all(limits.task().tags for _ in range(20))
    park, lease = Mixer(Mix.PARK).task(), Mixer(Mix.LEASE).task()
    assert park.tags
    assert (park.on_wait, lease.on_wait, full.task().on_wait) == ("park", "answer", "answer")
    assert [next(lease.states), lease.states.send(ACCEPTED)][1].state_details.lease
    assert limit_for(Load(Mix.PARK, 1, 0)) < limit_for(Load(Mix.LIMITS, 1, 0))
    drawn = [full.task() for _ in range(100)]
    assert all(task.tags for task in drawn)
    assert 0 < sum(task.policy.retries == 1 for task in drawn) < len(drawn)
