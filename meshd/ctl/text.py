"""Text for people: aligned tables, and quantities with their units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

NOT_FOR_SALE = 2**32 - 1
_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}

Record = dict[str, Any]


class Style:
    """Paints, when colours are wanted."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def paint(self, text: str, colour: str | None) -> str:
        if not self._colour or not text or colour is None:
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


Cell = str | tuple[str, str | None]  # text, or text and colour


def table(headers: Sequence[str], rows: Iterable[Sequence[Cell]], style: Style) -> str:
    """Columns two spaces apart. A header that begins with ">" makes its column flush right."""
    right = [header.startswith(">") for header in headers]
    cells: list[list[tuple[str, str | None]]] = [[(header.lstrip(">"), "bold") for header in headers]]
    cells += [[_cell(cell) for cell in row] for row in rows]
    widths = [max(len(row[column][0]) for row in cells) for column in range(len(headers))]
    return "\n".join(_line(row, widths, right, style) for row in cells)


def _cell(cell: Cell) -> tuple[str, str | None]:
    text, colour = (cell, None) if isinstance(cell, str) else cell
    return printable(text), colour


def printable(text: str) -> str:
    """Without the control characters that a terminal would obey, wherever they came from."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _line(row: list[tuple[str, str | None]], widths: list[int], right: list[bool], style: Style) -> str:
    parts = []
    for column, (text, colour) in enumerate(row):
        padding = " " * (widths[column] - len(text))
        painted = style.paint(text, colour)
        is_last = column == len(row) - 1
        parts.append(padding + painted if right[column] else painted if is_last else painted + padding)
    return "  ".join(parts).rstrip()


def size(count: int) -> str:
    """Bytes in decimal units, as the price's GB is."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def rate(bits_per_second: int) -> str:
    for unit, factor in (("Gbit/s", 10**9), ("Mbit/s", 10**6), ("kbit/s", 10**3)):
        if bits_per_second >= factor:
            return f"{bits_per_second / factor:g} {unit}"
    return f"{bits_per_second} bit/s"


def price(msat_per_gb: int | None) -> str:
    """msat/GB as sat/MB, without trailing zeroes; exact."""
    if msat_per_gb is None:
        return "-"
    if msat_per_gb == NOT_FOR_SALE:
        return "not for sale"
    return f"{_decimal(msat_per_gb, 6)} sat/MB"


def money(msat: int | None) -> str:
    """Below 1 sat in msat, above in sat; exact either way."""
    if msat is None:
        return "-"
    if abs(msat) < 1000:
        return f"{msat} msat"
    return f"{_decimal(msat, 3)} sat"


def _decimal(value: int, places: int) -> str:
    whole, part = divmod(abs(value), 10**places)
    text = f"{whole:,}.{part:0{places}d}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 else text


def duration(seconds: float) -> str:
    """The two largest units."""
    rest = int(seconds)
    parts: list[str] = []
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        count, rest = divmod(rest, length)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
