"""Checks of sequences: each change of state has its own number among the events of its partition, without a gap.

Numbers that were deleted with their runs are none: they are not above the partition's low water. Nor are those that
were undone when the database went back, which an era passes over.
"""

from typing import Final

from statewright_worker.audit.base import STATE_TABLES, Check

_LOW: Final = "coalesce(low_water.sequence, 0)"
_BOTH: Final = " UNION ALL ".join(f"SELECT run_id, partition, sequence FROM {table}" for table in STATE_TABLES)
_NUMBERED: Final = " + ".join(
    f"(SELECT count(*) FROM {table} AS state WHERE state.partition = partition.id AND state.sequence > {_LOW}"
    " AND state.sequence <= partition.sequence)"
    for table in STATE_TABLES
)
_PASSED_OVER: Final = f"""
    coalesce((
        SELECT sum(greatest(era.sequence - greatest(era.went_back_to, {_LOW}), 0)) FROM era
        WHERE era.partition = partition.id AND era.sequence <= partition.sequence
    ), 0)
"""

SEQUENCES: Final = (
    Check(
        "number of two events",
        """
        SELECT 'partition ' || flow.partition, flow.run_id, 'number ' || flow.sequence
            || ' is also that of a change of ' || task.run_id
        FROM flow_run_state AS flow JOIN task_run_state AS task
            ON task.partition = flow.partition AND task.sequence = flow.sequence
        """,
    ),
    Check(
        "numbers without events",
        f"""
        SELECT 'partition ' || counted.id, NULL::uuid, 'behind number ' || low || ' up to ' || sequence
            || ' there should be ' || due || ' changes, and there are ' || found
        FROM (
            SELECT partition.id, partition.sequence, {_LOW} AS low, {_NUMBERED} AS found,
                greatest(partition.sequence - {_LOW}, 0) - {_PASSED_OVER} AS due
            FROM partition LEFT JOIN low_water ON low_water.partition = partition.id
        ) AS counted
        WHERE found <> due
        """,
    ),
    Check(
        "number that was not reached",
        f"""
        SELECT 'partition ' || state.partition, state.run_id, 'its event has number ' || state.sequence
            || ', and the partition has reached ' || coalesce(partition.sequence::text, 'none')
        FROM ({_BOTH}) AS state LEFT JOIN partition ON partition.id = state.partition
        WHERE state.sequence > coalesce(partition.sequence, 0)
        """,
    ),
    Check(
        "subscription ahead of its partition",
        """
        SELECT 'subscription ' || share.subscription, NULL::uuid, 'in partition ' || share.partition
            || ' it has handled number ' || share.position || ', and the partition has reached ' || partition.sequence
        FROM subscription_share AS share JOIN partition ON partition.id = share.partition
        WHERE share.position > partition.sequence
        """,
    ),
)
