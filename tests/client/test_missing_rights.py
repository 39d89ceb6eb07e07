"""What servers say when a right is missing, in the words of each: user, command and keys are told all the same."""

import pytest
from redis.exceptions import ExecAbortError, NoPermissionError, OutOfMemoryError, ResponseError

from statewright.connection import Command, RightMissing, passing, patience_with, unavailable, with_its_right
from statewright.errors import NotPermitted, RedisUnavailable

REDIS_6_2_COMMAND = NoPermissionError("this user has no permissions to run the 'xadd' command or its subcommand")
REDIS_7_0_COMMAND = NoPermissionError("this user has no permissions to run the 'xadd' command")
VALKEY_COMMAND = NoPermissionError("User me has no permissions to run the 'xadd' command")
REDIS_KEY = NoPermissionError("this user has no permissions to access one of the keys used as arguments")
VALKEY_KEY = NoPermissionError("No permissions to access a key")
REDIS_CHANNEL = NoPermissionError("this user has no permissions to access one of the channels used as arguments")
VALKEY_CHANNEL = NoPermissionError("No permissions to access a channel")
REDIS_6_2_SUBCOMMAND = NoPermissionError("this user has no permissions to run the 'memory' command or its subcommand")
REDIS_7_0_SUBCOMMAND = NoPermissionError("this user has no permissions to run the 'memory|usage' command")
REDIS_6_2_IN_A_SCRIPT = ResponseError(
    "Error running script (call to f_db8d8f6383e1a67ce23db65efd679a334c123806): @user_script:1: @user_script: 1:"
    " The user executing the script can't run this command or subcommand"
)
REDIS_7_0_IN_A_SCRIPT = ResponseError(
    "The user executing the script can't run this command or subcommand script: db8d8f6, on @user_script:1."
)
REDIS_7_0_KEY_IN_A_SCRIPT = ResponseError(
    "The user executing the script can't access at least one of the keys mentioned in the command arguments"
    " script: d651ee0, on @user_script:1."
)
VALKEY_IN_A_SCRIPT = ResponseError(
    "ACL failure in script: User me has no permissions to run the 'xadd' command script: on @user_script:1."
)
VALKEY_KEY_IN_A_SCRIPT = ResponseError(
    "ACL failure in script: No permissions to access a key script: on @user_script:1."
)
EXEC = ExecAbortError("Transaction discarded because of: NOPERM User me has no permissions to run the 'exec' command")
XADD: Command = ("XADD", "stream", "*", b"a", b"b")
MEMORY: Command = ("MEMORY", "USAGE", "stream")
XREAD: Command = ("XREAD", "COUNT", 1, "BLOCK", 5, "STREAMS", "one", "other", "0-0", "0-0")
EVAL: Command = ("EVAL", "return 1", 2, "one", "other", "argument")
PUBLISH: Command = ("PUBLISH", "channel", "message")


@pytest.mark.parametrize(
    ("refusal", "sent", "command", "keys", "words"),
    [
        (REDIS_6_2_COMMAND, XADD, "XADD", (), "may not run XADD"),
        (REDIS_7_0_COMMAND, XADD, "XADD", (), "may not run XADD"),
        (VALKEY_COMMAND, XADD, "XADD", (), "may not run XADD"),
        (REDIS_KEY, XADD, "XADD", ("stream",), "may not use XADD on the key 'stream'"),
        (VALKEY_KEY, XADD, "XADD", ("stream",), "may not use XADD on the key 'stream'"),
        (VALKEY_KEY, XREAD, "XREAD", ("one", "other"), "may not use XREAD on one of the keys 'one', 'other'"),
        (REDIS_CHANNEL, PUBLISH, "PUBLISH", ("channel",), "may not use PUBLISH on the channel 'channel'"),
        (VALKEY_CHANNEL, PUBLISH, "PUBLISH", ("channel",), "may not use PUBLISH on the channel 'channel'"),
        (REDIS_6_2_SUBCOMMAND, MEMORY, "MEMORY USAGE", (), "may not run MEMORY USAGE"),
        (REDIS_7_0_SUBCOMMAND, MEMORY, "MEMORY USAGE", (), "may not run MEMORY USAGE"),
        (REDIS_6_2_IN_A_SCRIPT, EVAL, "a command within EVAL", (), "may not run a command within EVAL"),
        (REDIS_7_0_IN_A_SCRIPT, EVAL, "a command within EVAL", (), "may not run a command within EVAL"),
        (
            REDIS_7_0_KEY_IN_A_SCRIPT,
            EVAL,
            "EVAL",
            ("one", "other"),
            "may not use EVAL on one of the keys 'one', 'other'",
        ),
        (VALKEY_IN_A_SCRIPT, EVAL, "XADD", (), "may not run XADD"),
        (VALKEY_KEY_IN_A_SCRIPT, EVAL, "EVAL", ("one", "other"), "may not use EVAL on one of the keys 'one', 'other'"),
        (EXEC, ("EXEC",), "EXEC", (), "may not run EXEC"),
    ],
)
def test_the_missing_right_is_told_from_what_the_server_says(
    refusal: ResponseError, sent: Command, command: str, keys: tuple[str, ...], words: str
) -> None:
    missing = with_its_right(refusal, "me", sent)
    assert isinstance(missing, RightMissing)
    assert passing(missing)
    error = unavailable("it failed", missing)
    assert isinstance(error, NotPermitted)
    assert (error.user, error.command, error.keys) == ("me", command, keys)
    cure = "deploy/redis/users.acl shows the rights that each user needs"
    assert str(error) == f"it failed: Redis user 'me' {words}; {cure}"
    assert str(missing) == f"Redis user 'me' {words}; {cure}"


def test_other_refusals_stay_what_they_are() -> None:
    for refusal in (
        OutOfMemoryError("no memory"),
        ResponseError("wrong number of arguments"),
        ExecAbortError("of errors"),
    ):
        assert with_its_right(refusal, "me", XADD) is refused_alike(refusal)


def refused_alike(refusal: ResponseError) -> ResponseError:
    error = unavailable("it failed", refusal)
    assert type(error) is RedisUnavailable
    assert str(error) == f"it failed: {refusal}"
    return refusal


def test_a_missing_right_is_waited_for_less_than_what_passes_by_itself() -> None:
    missing = with_its_right(VALKEY_COMMAND, "me", XADD)
    assert patience_with(missing, 30) == 1
    assert patience_with(missing, 0.5) == 0.5
    assert patience_with(OutOfMemoryError("no memory"), 30) == 30
    assert patience_with(ResponseError("WRONGTYPE"), 30) == 0
