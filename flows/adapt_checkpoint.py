"""``adapt-checkpoint SD3.5-LARGE OUTPUT``: the image model becomes the video model (report, section 4).

Writes OUTPUT/transformer in the diffusers layout and prints what was reused, dropped and new. It is no flow: it reads
and writes one file after the other, in a minute.
"""

import argparse
import sys
from pathlib import Path

from models.adaptation import adapt
from models.checkpoint import save_transformer


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 where the checkpoint cannot be read or the output is there already."""
    parser = argparse.ArgumentParser(prog="adapt-checkpoint", description="Make the video model of SD3.5-Large.")
    parser.add_argument("source", type=Path, help="folder in the diffusers layout, or the single safetensors file")
    parser.add_argument("output", type=Path, help="folder to write transformer/ into")
    parser.add_argument("--position", choices=["absolute", "rotary"], default="absolute", help="rotary: an ablation")
    options = parser.parse_args(arguments)
    try:
        model, report = adapt(options.source, position=options.position)
        save_transformer(model, options.output / "transformer")
    except (OSError, ValueError) as problem:
        print(f"adapt-checkpoint: {problem}", file=sys.stderr)
        return 2
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
