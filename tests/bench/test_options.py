"""A load, and what each of several producers has of it."""

from statewright_worker.bench.options import Load, Mix


def test_a_load_is_shared_without_a_rest() -> None:
    load = Load(Mix.PLAIN, seconds=1, warm_up=0, concurrency=10)
    assert [share.concurrency for share in load.shared_by(3)] == [4, 3, 3]
    assert [share.prepared for share in Load(Mix.PLAIN, 1, 0, prepared=10).shared_by(3)] == [4, 4, 4]
    assert [share.rate for share in Load(Mix.PLAIN, 1, 0, rate=90).shared_by(3)] == [30, 30, 30]
