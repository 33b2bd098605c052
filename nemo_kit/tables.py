"""Tables that people bring: CSV, JSON, parquet and plain lines, every cell as it was written.

Scope: reading alone. Text is UTF-8, with or without a byte order mark; lines end with a line feed,
or carriage return and line feed, and with nothing else; no text becomes a number, a date or a
missing value. Which columns there must be is the caller's.
"""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from nemo_kit.files import without_guard

_RETURN = "\0"  # stands for a carriage return alone; no text has it, see `read_text`


def read_text(path: str | Path) -> str:
    """A text file as one string, without the byte order mark.

    Raises ValueError that names the byte and line which are no UTF-8, FileNotFoundError.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
        place, reason = data.find(b"\0"), "a zero"
    except UnicodeDecodeError as error:
        place, reason = error.start, error.reason
    if place < 0:
        return text
    line = data.count(b"\n", 0, place) + 1
    raise ValueError(
        f"{path} is not text in UTF-8: byte {place}, in line {line}, is {data[place]:#04x} "
        f"({reason}); save it as UTF-8"
    )


def read_csv(path: str | Path, separators: str = ",;\t") -> pd.DataFrame:
    """A CSV file with a header as a frame of text, cells and line breaks in quotes as they are.

    Parameters: `separators`, of which the one is taken that parts the header most. A table that
    `files.spreadsheet_safe` guarded comes without its guards.
    Raises ValueError that names the file, and the row (from 0) or line where one is to blame: bad
    quotes, too many or too few cells, a column named twice; and as `read_text`.
    """
    text = re.sub("\r(?!\n)", _RETURN, read_text(path))  # which csv would take for a line's end
    first = text.split("\n", 1)[0]
    parted = max(separators, key=lambda sign: first.count(sign))
    lines = csv.reader(io.StringIO(text, newline="\n"), delimiter=parted, strict=True)
    try:
        header, *rows = [row for row in lines if row] or [[]]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV: line {lines.line_num}: {error}") from error
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise ValueError(f"{path} has the column {twice[0]!r} more than once")
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(
                f"{path}: row {number} has {len(row)} cells, its header {len(header)}: {header}; "
                f"text with {parted!r} or a line break must stand in double quotes"
            )
    cells = [[cell.replace(_RETURN, "\r") for cell in row] for row in rows]
    return without_guard(pd.DataFrame(cells, columns=header, dtype=str))


def read_json(path: str | Path, as_text: bool = True) -> list[Any]:
    """The items of a JSON list, or the values of a file with one a line.

    Parameters: `as_text`, numbers as the text that stands there; NaN and the like are None.
    Raises ValueError that names the file, and the line where one is to blame; and as `read_text`.
    """
    kept: dict[str, Any] = {"parse_int": str, "parse_float": str} if as_text else {}
    kept["parse_constant"] = lambda name: None
    text = read_text(path)
    try:
        content = json.loads(text, **kept)
        return content if isinstance(content, list) else [content]
    except (ValueError, RecursionError) as error:
        whole = error
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            found += [json.loads(line, **kept)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            told = f"line {number}: {error}" if found else str(whole)
            raise ValueError(f"{path} is no JSON: {told}") from error
    return found


def read_parquet(path: str | Path) -> dict[str, list[Any]]:
    """Column -> values of a parquet file, None where one is null; whole numbers stay whole.

    Columns of lists, of objects and of bytes, as pictures are, are left out.
    Raises ValueError that names the file where it is no parquet file, FileNotFoundError.
    """
    from pyarrow import ArrowInvalid, parquet, types

    left_out = types.is_nested, types.is_binary, types.is_large_binary
    try:
        file = parquet.ParquetFile(path)
        fields = [one for one in file.schema_arrow if not any(is_(one.type) for is_ in left_out)]
        return file.read(columns=[one.name for one in fields]).to_pydict()
    except FileNotFoundError:
        raise
    except (ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
