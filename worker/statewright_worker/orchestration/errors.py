"""What the engine raises when a proposal cannot be governed; each becomes an ERROR reply, and undoes the proposal."""

from uuid import UUID


class OrchestrationError(Exception):
    """A proposal could not be governed; nothing of it remains."""


class RunNotFound(OrchestrationError):
    """No run has the id that the proposal names."""

    def __init__(self, run_id: UUID) -> None:
        super().__init__(f"there is no run {run_id}; create it first, on the same tree's partition")
        self.run_id = run_id


class RuleFailed(OrchestrationError):
    """A rule or a transform raised an exception, or took too long; `__cause__` is what was raised."""

    def __init__(self, rule: str, cause: BaseException, *, blocked: bool = False) -> None:
        super().__init__(f"{rule} failed: {type(cause).__name__}: {cause}")
        self.rule = rule
        self.blocked = blocked
        """Whether it held up the worker, and so everything else that the worker does, for longer than it may."""
