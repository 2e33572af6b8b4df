"""check: look at files from strangers without using them."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import files

HELP = "check files from strangers without using them; exit status 1 if any is bad"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+")


def run(args: argparse.Namespace) -> int:
    from ..alignment import load_aligned
    from ..direction import read_direction

    bad = 0
    for path in args.files:
        faults = []
        for read in (read_direction, load_aligned):
            try:
                read(path)
                break
            except (files.DirectionFormatError, OSError) as error:
                faults.append(str(error))
        else:
            bad += 1
            of_an_alignment = "it is 'aligned" in faults[0]
            print(f"bad   {path}: {faults[of_an_alignment]}")
            continue
        print(f"good  {path}")
    return 1 if bad else 0
