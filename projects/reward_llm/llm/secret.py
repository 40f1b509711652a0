"""An API key: taken from the environment, shown to nobody, cut out of every log line."""

import logging
import os
import re

from core_rl.errors import UsageError

MASK = "[key]"
SHORTEST = 8  # shorter "keys" are placeholders such as "none", and would be cut out of prose

_taken: dict[str, "Secret"] = {}
_hidden: set["Secret"] = set()


class Secret:
    """Text that only `reveal` gives; repr, str, format and pickle do not."""

    __slots__ = ("_value",)

    def __init__(self, value: str):
        self._value = value

    def reveal(self) -> str:
        return self._value

    def redact(self, text: str) -> str:
        """`text` without the key, wherever it stands in it."""
        return text.replace(self._value, MASK) if len(self._value) >= SHORTEST else text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


def take_key(variable: str) -> Secret | None:
    """The key in an environment variable, which is removed: child processes must not inherit it.

    Later calls in this process get the same key. None: the variable is not set.
    """
    value = os.environ.pop(variable, "").strip()
    if value:
        # A header with a line break or a non-ASCII character fails with the header in the message.
        if re.fullmatch(r"[!-~]+", value) is None:
            raise UsageError(f"{variable} holds characters that no key has (not shown)")
        _taken[variable] = Secret(value)
    return _taken.get(variable)


def hide_in_logs(secret: Secret) -> None:
    """From now on no log record of this process contains the key, whoever logs it.

    Records are cleaned when they are made: a filter of the root logger sees no record that another
    logger passes up to it, and a filter of today's handlers none of tomorrow's.
    """
    if not _hidden:
        make = logging.getLogRecordFactory()

        def make_redacted(*args, **kwargs) -> logging.LogRecord:
            return _redact_record(make(*args, **kwargs))

        logging.setLogRecordFactory(make_redacted)
    _hidden.add(secret)


def _redact_record(record: logging.LogRecord) -> logging.LogRecord:
    try:
        message = record.getMessage()
    except Exception:  # a malformed call of a logger: its handler reports that, without our help
        message = f"{record.msg} {record.args}"
    redacted = _redact(message)
    if redacted != message:
        record.msg, record.args = redacted, None
    if record.exc_info:
        trace = logging.Formatter().formatException(record.exc_info)
        if _redact(trace) != trace:
            # Formatters write exc_text as it is, and the exception itself has the key in it.
            record.exc_info, record.exc_text = None, _redact(trace)
    return record


def _redact(text: str) -> str:
    for secret in tuple(_hidden):
        text = secret.redact(text)
    return text
