"""Logging of the control plane: structlog to standard error, one line an event, for people or for machines.

Never called per message: a line costs tens of microseconds, a counter in the ledger nanoseconds.
"""

import logging
import sys

import structlog

from router import lines

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def setup(level: str, log_format: str, *, process: str) -> None:
    """Sets up logging for this process; call once, before the first line.

    Args:
        level: debug, info, warning or error.
        log_format: `console` or `json`.
        process: what the process is called in each line, such as `worker-0`.

    """
    # Libraries that log through the standard library (uvicorn, asyncio) come out beside ours, at warning or above.
    lines.setup(max(_LEVELS[level], logging.WARNING), as_json=log_format == "json", process=process)
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(process=process)


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry `name` as the part of the program that speaks."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return logger
