"""Keys, passwords and tokens inside URLs, which no file and no log that outlives a run may hold."""

import logging
import re
from typing import Any

HIDDEN = "***"
_USER_INFO = re.compile(r"(?<=:/)(/?)[^/\s@'\"]+@")
_QUERY = re.compile(r"([a-z][a-z0-9+.-]*:/[^\s?#'\"<>]*\?)(?!\*{3})[^\s#'\"<>]+", re.IGNORECASE)


def without_credentials(text: str) -> str:
    """Any text with `user:password@` and the queries of its URLs replaced by `***`.

    Whole queries, as every store has its own name for a token. A URL that was made a `Path`, and
    lost a slash, is one too.
    """
    return _QUERY.sub(rf"\1{HIDDEN}", _USER_INFO.sub(rf"\1{HIDDEN}@", text))


def hide_credentials(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The same for every text in mappings and lists."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, dict):
        return {key: hide_credentials(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(hide_credentials(one) for one in value)
    return value


class HideCredentials(logging.Filter):
    """Takes credentials out of what is logged; it is added to handlers, as loggers have many."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, without them."""
        message = record.getMessage()
        if (shown := without_credentials(message)) != message:
            record.msg, record.args = shown, None
        return True


def hide_in_logs() -> None:
    """Of this process, from here on."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, HideCredentials) for one in handler.filters):
            handler.addFilter(HideCredentials())
