"""The text of ``stack_plan.csv``: encodings, delimiters, quotes, column names.

Lines in, cells under the plan's own column names out; what the cells mean is `zemosaic_plan`'s business.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zemosaic_events import tagged_logger
from zemosaic_types import PlanError

logger = tagged_logger("ZeMosaicWorker.plan")

PLAN_NAME = "stack_plan.csv"

ALIASES = {
    "order": ("order", "seq", "sequence", "index"),
    "batch_id": ("batch_id", "batch", "session", "night"),
    "mount": ("mount", "eqmode", "mount_mode"),
    "bortle": ("bortle", "bortle_class", "sky_quality"),
    "telescope": ("telescope",),
    "session_date": ("session_date",),
    "filter": ("filter", "band", "channel"),
    "exposure": ("exposure", "exp", "exptime", "exposure_s"),
    "file_path": ("file_path", "filepath", "file", "path", "filename", "fits", "raw"),
    "ra": ("ra", "ra_deg"),
    "dec": ("dec", "dec_deg"),
}

#: What a file must be called to be taken for an exposure.
FITS_NAME = re.compile(r"\.(fit|fits|fts)(\.fz|\.gz)?$", re.IGNORECASE)

_KNOWN_NAMES = frozenset(alias for aliases in ALIASES.values() for alias in aliases)
_DELIMITERS = (",", ";", "|", "\t", " ")
_MAX_LINES_A_ROW = 8  # a quoted cell may hold line breaks; a quote never closed must not eat the file


@dataclass(frozen=True, slots=True)
class PlanTable:
    """A CSV file as text: its cells, and which column of the plan each of them belongs to."""

    delimiter: str
    places: dict[str, tuple[int, ...]]
    records: list[tuple[int, list[str]]]

    def cell(self, cells: Sequence[str], column: str) -> str:
        """Return the first cell of `column`'s aliases that is not empty, or an empty text."""
        for place in self.places.get(column, ()):
            if place < len(cells) and cells[place]:
                return cells[place]
        return ""


def read_table(csv_path: Path) -> PlanTable:
    """Read a CSV file and find the plan's columns in it.

    Raises
    ------
    PlanError
        If the file cannot be read, is empty, or has no column with file paths.
    """
    try:
        text = _decode(csv_path.read_bytes())
    except OSError as err:
        raise PlanError(f"{csv_path} cannot be read: {err.strerror or err}") from err
    # newline="" keeps the line ends as they are and cuts at \n, \r and \r\n only.
    lines = io.StringIO(text, newline="").readlines()
    delimiter = _sniff([line for line in lines if not _ignored(line)][:1])
    records = list(_records(lines, delimiter))
    if not records:
        raise PlanError(f"{csv_path} is empty")
    header = records[0][1]
    places = _places(header)
    if not places and (column := _fits_column(header)) is not None:
        logger.info("%s has no header; column %d is read as the path", csv_path.name, column + 1)
        return PlanTable(delimiter, {"file_path": (column,)}, records)
    if "file_path" not in places:
        raise PlanError(
            f"{csv_path} has no column with file paths: its columns are {', '.join(header)[:200]!r}; "
            f"one of {', '.join(ALIASES['file_path'])} is needed"
        )
    if len(records) == 1:
        raise PlanError(f"{csv_path} has a header but no rows")
    return PlanTable(delimiter, places, records[1:])


def _decode(data: bytes) -> str:
    """Return the text; a line that is not UTF-8 is taken as Windows-1252 rather than lost."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    return "".join(map(_decode_line, data.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True)))


def _decode_line(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _ignored(line: str) -> bool:
    """Whether a line is blank (a spreadsheet's row of nothing but delimiters too) or a comment."""
    text = line.strip(" \t\r\n,;|\"'")
    return not text or line.lstrip().startswith("#")


def _sniff(line: list[str]) -> str:
    """Return the delimiter that makes most sense of the first line, a comma if none does.

    Known column names count first, then whether a cell is the path of a FITS file, then the number of cells. A
    space is tried last, because it is common inside names and paths.
    """
    best, best_score = ",", (0, False, 0)
    for delimiter in _DELIMITERS:
        cells = _split(line, delimiter)
        n_known = sum(_column_name(cell) in _KNOWN_NAMES for cell in cells)
        score = (n_known, _fits_column(cells) is not None, len(cells))
        if score > best_score and (delimiter != " " or best_score[:2] == (0, False)):
            best, best_score = delimiter, score
    return best


def _records(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield ``(line number, cells)`` of every row with a cell that is not empty."""
    index, n_columns = 0, 0
    while index < len(lines):
        n_lines = 1
        if not _ignored(lines[index]):
            cells, n_lines = _record_at(lines, index, delimiter)
            # Columns padded with spaces: a run of them is one delimiter.
            if delimiter == " " and len(cells) != n_columns:
                cells = [cell for cell in cells if cell]
            n_columns = n_columns or len(cells)
            if any(cells):
                yield index + 1, cells
        index += n_lines


def _record_at(lines: list[str], index: int, delimiter: str) -> tuple[list[str], int]:
    """Return the cells of the row that starts at `index`, and how many lines it takes.

    A row takes more than one line only where a quoted cell with line breaks is closed properly and soon; so a
    stray quote spoils its own row and none of those below.
    """
    window = lines[index : index + _MAX_LINES_A_ROW]
    reader = csv.reader(window, delimiter=delimiter, skipinitialspace=delimiter != " ", strict=True)
    try:
        cells = next(reader)
    except csv.Error:
        return _split(window[:1], delimiter), 1
    return [clean_cell(cell) for cell in cells], reader.line_num


def _split(line: list[str], delimiter: str) -> list[str]:
    """Return the cells of one line, whatever its quotes are."""
    try:
        cells = next(csv.reader(line, delimiter=delimiter, skipinitialspace=delimiter != " "), [])
    except csv.Error:  # a cell longer than the csv module takes
        cells = line[0].split(delimiter)
    return [clean_cell(cell) for cell in cells]


def clean_cell(cell: str) -> str:
    """Return a cell without the blanks and the pair of quotes around it."""
    text = cell.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def _column_name(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", cell.casefold())


def _places(header: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return, for each known column, the indices of the cells that may hold it, best alias first."""
    names = [_column_name(cell) for cell in header]
    places = {
        column: tuple(i for alias in aliases for i, name in enumerate(names) if name == alias)
        for column, aliases in ALIASES.items()
    }
    return {column: found for column, found in places.items() if found}


def _fits_column(cells: Sequence[str]) -> int | None:
    return next((i for i, cell in enumerate(cells) if FITS_NAME.search(cell)), None)
