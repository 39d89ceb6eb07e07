"""What a client asks beside the lanes: arguments are checked and become queries. No IO."""

from statewright.client.requests import checked
from statewright.protocol.queries import ListPartitions


def list_partitions(seconds: float) -> ListPartitions:
    """Return the query for all partitions."""
    return checked(ListPartitions, seconds=seconds)
