"""What storage raises, sorted by what the drain does about it."""


class StorageError(Exception):
    """The base of what storage raises."""


class LeaseLost(StorageError):
    """Another drain has taken the partition up: this one must stop; nothing of the batch was written."""


class Unavailable(StorageError):
    """PostgreSQL is away, or somebody else holds a lock for too long: the same batch is worth another try."""


class Overtaken(StorageError):
    """What the batch was decided on was no longer so when it was written: decide it anew; nothing of it was written."""


class Refused(StorageError):
    """PostgreSQL refused what the batch wanted to store; nothing of it was written."""
