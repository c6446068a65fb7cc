"""The log of a command: to a file with times, or to standard error."""

import logging
from pathlib import Path

from paramdelta.cli.show.terminal import say
from paramdelta.errors import UsageError
from paramdelta.text import line


class _Said(logging.Handler):
    """Prints records to standard error, beside a live bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        say(f"{record.levelname.lower()}: {record.getMessage()}", err=True)


class _Lines(logging.Formatter):
    """A line each, with the time; unsafe characters become escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        time = self.formatTime(record)
        return line(f"{time} {record.levelname} {record.name}: {record.getMessage()}")


def start_log(verbose: bool, path: Path | None) -> None:
    """Send what the package logs to standard error, to a file, or to both.

    Raises:
        UsageError: the file cannot be opened.
    """
    logger = logging.getLogger("paramdelta")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        logger.addHandler(_Said())
    if path is not None:
        try:
            handler = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                "cannot open the log file",
                code="log-file",
                where=str(path),
                got=error.strerror,
                remedy="choose another `log_file`",
            ) from None
        handler.setFormatter(_Lines())
        logger.addHandler(handler)
