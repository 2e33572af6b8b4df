"""Files of prompts as people keep them, for `scan`, `evaluate` and benchmarks: see FORMATS.

    for row in read_rows("prompts.csv.gz"):
        print(row.text, row.fields.get("category"))

A .csv has commas, semicolons or tabs, whichever its header shows. A prompt is a cell without the white space round it. A
blank line in a table is no row. An empty cell, or a blank line in a .txt, is a row whose text is "": `scan` gives it no
score; `evaluate` passes a .txt's by and refuses a table's.
"""

from .reading import PROMPT_COLUMNS, Part, Row, find_parts, parquet_files, prompt_column, read_parts, read_rows
from .table import Position, suffix_of

FORMATS = (
    ".csv with commas, semicolons or tabs, .tsv, .txt with a prompt a line or .jsonl, each also as .gz; .parquet, or a folder "
    "of such (needs pyarrow)"
)

__all__ = [
    "FORMATS",
    "PROMPT_COLUMNS",
    "Part",
    "Position",
    "Row",
    "find_parts",
    "parquet_files",
    "prompt_column",
    "read_parts",
    "read_rows",
    "suffix_of",
]
