"""How every settings class refuses a value."""


def check(ok: bool, key: str, found: object, expected: str) -> None:
    """Raise an error that names the key, what was found and what was expected.

    Raises:
        ValueError: `ok` is false.
    """
    if not ok:
        raise ValueError(f"{key}: found {found}, expected {expected}; correct it in the config")
