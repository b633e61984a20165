import logging

import pytest

from data_prep.credentials import HideCredentials, hide_credentials, without_credentials

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:hunter2@bucket/data", "s3://***@bucket/data"),
        ("s3:/key:hunter2@bucket/data", "s3:/***@bucket/data"),  # what a Path makes of it
        ("https://user@host/a?b=1", "https://***@host/a?***"),
        (
            "get https://host/a.jpg?token=hunter2&w=3 failed",
            "get https://host/a.jpg?*** failed",
        ),
        ("'az://c/x?sig=hunter2' and 'gs://d/y'", "'az://c/x?***' and 'gs://d/y'"),
        ("https://host/a?t=hunter2#part", "https://host/a?***#part"),
        ("mail to me@host.org, C:/a or what? no", "mail to me@host.org, C:/a or what? no"),
        ("s3://bucket/user@host/data", "s3://bucket/user@host/data"),
    ],
)
def test_credentials_of_urls_are_hidden_and_the_rest_stays(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
    assert without_credentials(f"{shown}: gone") == f"{shown}: gone"  # once is enough


def test_settings_are_searched_to_the_bottom() -> None:
    given = {"a": [{"b": "s3://k:hunter2@x"}], "c": 3, "d": ("https://h/?t=hunter2", None)}
    assert hide_credentials(given) == {
        "a": [{"b": "s3://***@x"}],
        "c": 3,
        "d": ("https://h/?***", None),
    }


def test_a_log_holds_no_credentials(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(HideCredentials())
    logging.getLogger("data_prep.media").warning("%s: not fetched", f"s3://k:{SECRET}@b/x.jpg")
    assert SECRET not in caplog.text
    assert "s3://***@b/x.jpg: not fetched" in caplog.text
