"""What counts within the measured window, and the samples of several producers as one."""

from random import Random

from statewright import SetStateStatus
from statewright_worker.bench.samples import Journal, Samples


def test_latency_counts_by_its_beginning_and_throughput_by_its_end() -> None:
    moment = 0.0
    journal = Journal(seconds=10, start=100, clock=lambda: moment)
    for asked, moment in ((99.0, 101.0), (105.0, 106.0), (109.0, 112.0)):  # noqa: B007  # the clock reads it
        journal.answered(asked, SetStateStatus.ACCEPT)
    assert journal.samples.transitions() == 2
    assert journal.samples.latencies() == [1_000, 3_000]
    assert journal.samples.statuses == {"ACCEPT": 2}
    assert journal.samples.throughput(5) == [0.2, 0.2]


def test_samples_of_several_producers_are_one() -> None:
    random = Random(1)
    parts = [Samples(10) for _ in range(3)]
    for part in parts:
        part.asked.append(random.random())
        part.answered.append(2)
        part.created = 1
    whole = Samples.together(10, parts)
    assert (whole.transitions(), whole.created) == (3, 3)
