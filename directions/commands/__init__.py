"""The commands of `python -m directions`: a module each, with HELP, `add_arguments(parser)` and `run(arguments)`."""

from __future__ import annotations

from types import ModuleType

from . import align, align_all, check, estimate, evaluate, host_check, scan, show

COMMANDS: dict[str, ModuleType] = {
    "show": show,
    "estimate": estimate,
    "align": align,
    "align-all": align_all,
    "check": check,
    "scan": scan,
    "evaluate": evaluate,
    "host-check": host_check,
}
