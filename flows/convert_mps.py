"""``convert-mps MPS_overall_checkpoint.pth OUTPUT``: the published reward model, once, to a folder of safetensors.

The published file is a pickled module. It is read in an isolated process that runs nothing of what the file names. It
is no flow: it reads and writes one file after the other, in a minute.
"""

import argparse
import sys
from pathlib import Path

from models.scoring.mps_convert import convert_mps


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 where the file cannot be read or the output is there already."""
    parser = argparse.ArgumentParser(prog="convert-mps", description="Make safetensors of the published MPS.")
    parser.add_argument("pickled", type=Path, help="the published MPS_overall_checkpoint.pth")
    parser.add_argument("output", type=Path, help="folder to write config.json and model.safetensors into")
    options = parser.parse_args(arguments)
    try:
        conversion = convert_mps(options.pickled, options.output)
    except (OSError, ValueError) as problem:
        print(f"convert-mps: {problem}", file=sys.stderr)
        return 2
    print(conversion)
    return 0


if __name__ == "__main__":
    sys.exit(main())
