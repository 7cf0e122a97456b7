"""Memory budgets as people write them."""

import pytest

from mixflow import InputError
from mixflow.units import parse_budget


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("123", 123),
        ("10B", 10),
        ("8GiB", 8 * 1024**3),
        ("8 gib", 8 * 1024**3),
        ("1.5KiB", 1536),
        ("2MB", 2_000_000),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_budget(text) == count


@pytest.mark.parametrize("text", ["", "8XB", "-1", "0", "GiB", "1e9", "8 GiB extra", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="memory budget"):
        parse_budget(text)
