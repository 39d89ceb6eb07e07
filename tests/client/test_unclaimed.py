"""Answers that nobody awaits are kept within bounds, the newest ones."""

import pytest

from statewright.client import unclaimed
from statewright.client.unclaimed import Unclaimed

VERDICT = b'{"type":"verdict","v":1}'


def kept(answers: Unclaimed) -> list[bytes]:
    return [request_id for request_id, _ in answers.take()]


def test_each_is_taken_once_and_stays_until_the_next_one_is_taken() -> None:
    answers = Unclaimed()
    for number in range(3):
        answers.keep(b"%d" % number, b"%d-0" % number, number, VERDICT)
    taken = answers.take()
    assert [next(taken), next(taken)] == [(b"0", VERDICT), (b"1", VERDICT)]
    # Whoever failed over the second one finds it again.
    assert kept(answers) == [b"1", b"2"]
    assert kept(answers) == []


def test_only_verdicts_and_refusals_are_kept() -> None:
    answers = Unclaimed()
    for number, body in enumerate([b'{"type":"limit","v":1}', b'{"type":"error","v":1}', VERDICT]):
        answers.keep(b"%d" % number, b"1-0", number, body)
    assert kept(answers) == [b"1", b"2"]


def test_an_answer_that_comes_again_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unclaimed, "UNCLAIMED_BYTES", 2 * len(VERDICT))
    answers = Unclaimed()
    for number, request_id in enumerate([b"a", b"b", b"a", b"a"]):
        answers.keep(request_id, b"1-0", number, VERDICT)
    assert kept(answers) == [b"b", b"a"]


@pytest.mark.parametrize(("bound", "most"), [("UNCLAIMED_KEPT", 3), ("UNCLAIMED_BYTES", 3 * len(VERDICT))])
def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch, bound: str, most: int) -> None:
    monkeypatch.setattr(unclaimed, bound, most)
    answers = Unclaimed()
    for number in range(5):
        answers.keep(b"%d" % number, b"1-0", number, VERDICT)
    answers.drop(b"3")
    answers.drop(b"unknown")
    assert kept(answers) == [b"2", b"4"]


def test_it_knows_which_entries_must_stay() -> None:
    answers = Unclaimed()
    assert answers.first_behind(0) is None
    for number in (1, 5, 9):
        answers.keep(b"%d" % number, b"%d-0" % number, number, VERDICT)
    assert [answers.first_behind(number) for number in (-5, 0, 1, 8, 9)] == [b"1-0", b"1-0", b"5-0", b"9-0", None]
