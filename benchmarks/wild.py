"""Real harmless prompts of yours: what share of each file a budget really flags.

    python -m benchmarks.wild FOLDER_OR_FILES [--column NAME] [--targets minilm gemma-3-270m both]

Reads CSV, TSV, TXT, JSON Lines and Parquet, as `python -m directions scan` does. A row for each file: how many prompts, their
mean number of tokens, and the share that is flagged at budgets of 1%, 5% and 20%. Nothing is kept of the prompts but the
states in the cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from directions.prompt_files import read_rows

from .models import TARGETS, target_states
from .reading import BOTH, TOGETHER, alignment, prompt_scores

BUDGETS = (0.01, 0.05, 0.2)
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".parquet", ".gz")


def files(paths: list[Path]) -> Iterator[Path]:
    """The files, and those in the folders, sorted."""
    for path in paths:
        inside = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES) if path.is_dir() else [path]
        yield from inside


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="files of harmless prompts, or folders of them")
    parser.add_argument("--column", help="the prompts' column, where a file has several")
    parser.add_argument("--source", default="smollm2-135m-instruct", help="a direction, by name or path (%(default)s)")
    parser.add_argument("--targets", nargs="+", default=[*TOGETHER, BOTH], choices=[*sorted(TARGETS), BOTH])
    args = parser.parse_args()
    print(f"{'target':14}{'file':24}{'n':>6}{'tokens':>8}" + "".join(f"{f'at {budget:.0%}':>9}" for budget in BUDGETS))
    for target in args.targets:
        aligned = alignment(args.source, target)
        for path in files(args.paths):
            prompts = [row.text for row in read_rows(path, args.column)]
            tokens = sum(map(len, target_states(TOGETHER[0] if target == BOTH else target, prompts))) / len(prompts)
            scores = prompt_scores(aligned, target, prompts)
            cells = "".join(f"{(scores > aligned.threshold(b)).float().mean().item():9.4f}" for b in BUDGETS)
            print(f"{target:14}{path.name:24}{len(prompts):6}{tokens:8.0f}{cells}")


if __name__ == "__main__":
    main()
