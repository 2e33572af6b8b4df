"""The command line: python -m directions show | estimate | align | align-all | check | scan | evaluate | host-check."""

from __future__ import annotations

import argparse
import sys

from .commands import COMMANDS

PROGRAM = f"python -m {__package__}"  # `safety_directions` where it was installed by pip
EXAMPLES = f"""examples:
  {PROGRAM} show                             # what is in the library
  {PROGRAM} show smollm2-135m-instruct
  {PROGRAM} check strangers-file.safetensors
  {PROGRAM} estimate ./Llama-3.1-8B-Instruct --name llama-3.1-8b
  {PROGRAM} align smollm2-135m-instruct ./states.safetensors --out aligned.safetensors
  {PROGRAM} align-all                        # every text encoder of the ComfyUI that is running
  {PROGRAM} scan prompts.csv --source SmolLM2-135M-Instruct.Q4_1.gguf --out runs/scan
  {PROGRAM} evaluate workflow-api.json i2p.csv --benign coco.csv --out runs/first --alpha 3 5
  {PROGRAM} host-check --url http://127.0.0.1:8188
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Estimate safety directions in a language model, look at them, align them to a text encoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        about = getattr(command, "DESCRIPTION", None)
        command.add_arguments(commands.add_parser(name, help=command.HELP, description=about))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Faults in the input go to standard error in one line."""
    args = _parser().parse_args(arguments)
    try:
        return COMMANDS[args.command].run(args) or 0
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no result was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
