"""What storage raises, one class for each meaning; `drain/attempts.py` decides what follows from each."""


class StorageError(Exception):
    """The base of what storage raises. Nothing of the batch was written, or else the ledger has it."""


class HoldLost(StorageError):
    """Another drain has taken the partition up: this one must stop."""

    def __init__(self, partition: int) -> None:
        super().__init__(f"partition {partition} was taken up by another drain")


class Away(StorageError):
    """PostgreSQL does not answer, or takes no writes for now; the batch is not the cause."""


class ConnectionLost(StorageError):
    """The connection broke in the middle of the batch's transaction: by chance, or because of what the batch did."""


class Crossed(StorageError):
    """Something came in the batch's way: a lock, a deadlock, a statement that took too long, or somebody else's row."""


class TooSlow(StorageError):
    """A statement that only reads took longer than it may."""


class NotWritable(StorageError):
    """PostgreSQL refused what the batch wanted to store."""
