"""What storage raises, sorted by what it says about PostgreSQL; `drain/attempts.py` decides what follows from each."""


class StorageError(Exception):
    """The base of what storage raises; nothing of the batch was written, or it will be found in the ledger."""


class HoldLost(StorageError):
    """Another drain has taken the partition up: this one must stop."""


class Away(StorageError):
    """PostgreSQL does not answer, or takes no writes for now: it has nothing to do with the batch."""


class ConnectionLost(StorageError):
    """The connection broke in the middle of the batch's transaction: by chance, or because of what the batch did."""


class Crossed(StorageError):
    """Something came in the batch's way: a lock, a deadlock, a statement that took too long, or somebody else's row."""


class NotWritable(StorageError):
    """PostgreSQL refused what the batch wanted to store."""
