"""Sizes and durations, both ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import UsageError
from paramdelta.units import (
    parse_share,
    parse_size,
    show_count,
    show_duration,
    show_least,
    show_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5_000_000_000),
        ("4GiB", 4 << 30),
        ("256 mb", 256_000_000),
        ("1.5kb", 1500),
        ("12", 12),
        (7, 7),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes_are_read(text, size):
    """Decimal and binary units, any case, with or without a space."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 giga", "5XB", "1e3"])
def test_other_sizes_are_refused(text):
    """Anything else is a usage error that shows what was meant."""
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.25", 0.25), ("100 %", 1.0)])
def test_shares_are_read(text, share):
    """Percent or a fraction."""
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0", "101%", "-1%", "nan", "much", "inf"])
def test_other_shares_are_refused(text):
    """Nothing, more than all, and words."""
    with pytest.raises(UsageError):
        parse_share(text)


@given(st.integers(0, 10**15))
def test_what_is_shown_is_near(size):
    """A shown size has one decimal below 100, so it reads back within half of a tenth of a unit."""
    assert parse_size(show_size(size)) == pytest.approx(size, rel=0.05)


def test_people_read_these():
    """Spot checks of what people see."""
    assert [show_size(n) for n in (999, 2_796_000_000, 128_000_000)] == [
        "999 B",
        "2.8 GB",
        "128 MB",
    ]
    assert [show_count(n) for n in (512, 1_398_000_000)] == ["512", "1.4 B"]
    assert [show_duration(s) for s in (0.4, 12.3, 245, 3729)] == [
        "0.40 s",
        "12.3 s",
        "4:05 min",
        "1:02:09 h",
    ]


@given(st.integers(1, 10**15))
def test_a_least_size_is_enough_and_not_much_more(count):
    """What is shown is at least the size, and at most a tenth larger."""
    shown = parse_size(show_least(count))
    assert count <= shown <= max(1.1 * count, count + 1)
