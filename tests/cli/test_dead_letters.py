"""`statewright dead-letters`: what could not be carried out is listed, sent again where it is whole, and dropped."""

import json
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from statewright import DeadRequest, InvalidRequest, RunNotFound, State
from statewright.ids import IdSource
from tests.cli.asking import asked, lines
from tests.deployment import Deployment, until

IDS = IdSource()


async def push(deployment: Deployment, partition: int, message: str) -> None:
    async with deployment.redis() as redis:
        await redis.xadd(deployment.channels.proposals(partition), {"id": str(IDS.new()), "message": message})


async def refused(deployment: Deployment, partition: int, letters: int) -> None:
    async with deployment.redis() as redis:
        await until(lambda: _has(redis, deployment, partition, letters))


async def _has(redis: Redis, deployment: Deployment, partition: int, letters: int) -> bool:
    return int(await redis.xlen(deployment.channels.dead_letters(partition))) == letters


async def test_letters_are_listed_shown_sent_again_and_dropped(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2), deployment.client() as client:
        early = IDS.new(tag=1)
        with pytest.raises(RunNotFound):
            await client.propose(early, State.running())
        await push(deployment, 0, json.dumps({"v": 1, "type": "propose", "run_id": "x"}))
        await push(deployment, 0, "x" * 5_000)
        await refused(deployment, 0, 2)
        nonsense, large, late = await lines(deployment, "dead-letters", "list")
        assert [letter["partition"] for letter in (nonsense, large, late)] == [0, 0, 1]
        assert (late["type"], late["run_id"], late["field"], late["is_whole"]) == (
            "propose",
            str(early),
            "run_id",
            True,
        )
        assert (large["size"], len(large["message"]), large["is_whole"]) == (5_000, 4_096, False)
        [only] = await lines(deployment, "dead-letters", "list", "--run", early)
        assert only == late
        named = f"1/{late['entry']}"
        page = (await asked(deployment, "dead-letters", "show", named)).stdout
        assert all(words in page for words in (named, str(early), late["reason"], '"type":"propose"'))

        assert (await asked(deployment, "dead-letters", "send-again")).returncode == 2
        dry = await asked(deployment, "dead-letters", "send-again", "--all", "--dry-run")
        assert (dry.returncode, named in dry.stdout) == (0, True)
        assert "1 letter cannot be sent again: of a message the first 4,096 bytes alone are kept" in dry.stderr
        assert (await asked(deployment, "dead-letters", "send-again", "--all")).returncode == 1
        await client.create_flow_run("late", run_id=early)
        sent = await asked(deployment, "dead-letters", "send-again", named, "--yes")
        assert (sent.returncode, "ACCEPT" in sent.stdout) == (0, True)
        assert [state.name for state in (await client.read_run(early)).states] == ["Running"]
        [again] = await lines(deployment, "dead-letters", "send-again", "--partition", 0, "--yes")
        assert "run_id" in again["error"]
        # The one that is refused anew has a letter of its own, and what cannot be sent stays.
        kept = await lines(deployment, "dead-letters", "list")
        assert [letter["is_whole"] for letter in kept] == [False, True]
        assert kept[1]["entry"] != nonsense["entry"]
        assert (await asked(deployment, "dead-letters", "drop", "--all")).returncode == 1
        dropped = await asked(deployment, "dead-letters", "drop", "--all", "--yes")
        assert dropped.stdout.endswith("2 dead letters dropped\n")
        assert (await asked(deployment, "dead-letters", "list")).stderr == "there is no such dead letter\n"
        missing = await asked(deployment, "dead-letters", "show", named)
        assert (missing.returncode, missing.stderr) == (1, f"there is no dead letter {named}\n")
        with pytest.raises(InvalidRequest, match="5000 bytes"):
            await client.send_again(DeadRequest.model_validate(large))


async def test_who_may_not_read_them_is_told_which_right_is_missing(deployment: Deployment) -> None:
    user = f"producer-{deployment.namespace}"
    url = urlsplit(deployment.redis_url)
    async with deployment.worker(partitions=1), deployment.redis() as redis:
        rights = ("ACL", "SETUSER", user, "on", ">secret", "~*", "&*", "+@all", "-xrange")
        await redis.execute_command(*rights)  # type: ignore[no-untyped-call]
        try:
            if url.scheme == "unix":
                named = f"unix://{user}:secret@{url.path}"
            else:
                named = f"redis://{user}:secret@{url.hostname}:{url.port or 6379}/0"
            told = await asked(deployment, "dead-letters", "list", STATEWRIGHT_REDIS_URL=named)
        finally:
            await redis.execute_command("ACL", "DELUSER", user)  # type: ignore[no-untyped-call]
    assert (told.returncode, told.stdout) == (1, "")
    assert f"Redis user '{user}' may not run XRANGE" in told.stderr
