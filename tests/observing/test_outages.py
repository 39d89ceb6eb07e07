"""The log of an outage: a line at its start, at most one a minute, a line at its end."""

from structlog.testing import CapturingLogger

from statewright_worker.observing.outages import REMINDER_SECONDS, Outage


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def lines(log: CapturingLogger) -> list[tuple[str, str, dict[str, object]]]:
    return [(call.method_name, call.args[0], call.kwargs) for call in log.calls]


def test_an_outage_has_a_line_at_its_start_and_one_at_its_end_with_its_length() -> None:
    log, clock = CapturingLogger(), Clock()
    outage = Outage("PostgreSQL", log, clock)
    for _ in range(300):
        outage.failed(ConnectionRefusedError("refused\nand more"))
        clock.now += 0.1
    outage.over()
    outage.over()
    assert lines(log) == [
        ("warning", "PostgreSQL is away", {"error": "ConnectionRefusedError: refused"}),
        ("info", "PostgreSQL is back", {"seconds": 30.0, "tried": 300}),
    ]


def test_a_long_outage_is_told_at_most_once_a_minute() -> None:
    log, clock = CapturingLogger(), Clock()
    outage = Outage("Redis", log, clock)
    for _ in range(2 * 480 + 1):
        outage.failed(TimeoutError())
        clock.now += REMINDER_SECONDS / 480
    told = lines(log)
    assert [(method, event) for method, event, _ in told] == [
        ("warning", "Redis is away"),
        ("warning", "Redis is still away"),
        ("warning", "Redis is still away"),
    ]
    assert [said["error"] for *_, said in told] == ["TimeoutError"] * 3
    assert (told[1][2]["seconds"], told[1][2]["tried"]) == (60.0, 481)


def test_without_an_outage_nothing_is_said_and_the_next_one_begins_anew() -> None:
    log, clock = CapturingLogger(), Clock()
    outage = Outage("Redis", log, clock)
    outage.over()
    assert lines(log) == []
    for _ in range(2):
        outage.failed(OSError("gone"))
        clock.now += 1
        outage.over()
    assert [event for _, event, _ in lines(log)] == ["Redis is away", "Redis is back"] * 2
    assert lines(log)[-1][2] == {"seconds": 1.0, "tried": 1}
