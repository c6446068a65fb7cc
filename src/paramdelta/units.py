"""Sizes, rates, durations and counts: between what people write and integer bytes."""

import re

from paramdelta.errors import UsageError

_FACTORS = {
    "": 1,
    "B": 1,
    **{f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGTP")},
    **{f"{p}IB": 1024 ** (i + 1) for i, p in enumerate("KMGTP")},
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """``"5GB"`` -> 5000000000, ``"4GiB"`` -> 4294967296; a bare number is bytes.

    Raises:
        UsageError: not a number with a known unit.
    """
    match = _SIZE.fullmatch(str(text))
    factor = _FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError(
            f"{text!r} is not a size",
            code="invalid-size",
            expected="a number with a unit: 256MB, 4GiB",
        )
    return int(float(match[1]) * factor)


def parse_share(text: str) -> float:
    """``"1%"`` -> 0.01, ``"0.25"`` -> 0.25.

    Raises:
        UsageError: not a number, or outside (0 %, 100 %].
    """
    try:
        share = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = float("nan")
    if not 0 < share <= 1:
        raise UsageError(
            f"{text!r} is not a share",
            code="invalid-share",
            expected="above 0 and up to 100%: 1%, 0.25",
        )
    return share


def parse_number(text: str, what: str) -> float:
    """``"0.5"`` -> 0.5. ``what``: what it is, for messages.

    Raises:
        UsageError: not a number; a decimal comma is named.
    """
    try:
        return float(text)
    except ValueError:
        pass
    point = text.replace(",", ".")
    try:
        float(point)
    except ValueError:
        point = ""
    raise UsageError(
        f"{what} is not a number",
        code="invalid-number",
        expected="a number such as 0.5",
        got=text,
        remedy=f"write a decimal point: {point}" if point else None,
    )


def show_size(count: float) -> str:
    """Bytes for people, in decimal units as disks and the Hub count: ``2.8 GB``."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def show_least(count: int) -> str:
    """The size nearest above, as `show_size` writes it, so that what is read back is enough."""
    step = 1
    while parse_size(shown := show_size(-(-count // step) * step)) < count:
        step *= 10
    return shown


def show_count(count: float) -> str:
    """A number of things for people: ``1.4 B``, ``128 M``, ``512``."""
    for unit in ("", " K", " M", " B", " T"):
        if abs(count) < 999.5 or unit == " T":
            return f"{count:.0f}{unit}" if not unit or count >= 99.95 else f"{count:.1f}{unit}"
        count /= 1000
    raise AssertionError("unreachable")


def show_duration(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``4:05 min``, ``1:02:09 h``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h"
