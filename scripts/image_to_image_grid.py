"""Generate pictures anew with other prompts, by strength, as one labelled picture.

Usage: python scripts/image_to_image_grid.py BUNDLE [--out build/image-to-image.png]
The bundle is one of `shapes`, built with --image-to-image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from picture_grid import picture_grid
from rich.console import Console
from rich.progress import track

from tgate_export import TGatePipeline

# What the image is made from, and what it is to become.
PROMPTS = (
    ("a red circle on a blue background", "a red cross on a blue background"),
    ("a yellow cross on a magenta background", "a cyan cross on a magenta background"),
    ("a green square on a white background", "a green triangle on a white background"),
)
STRENGTHS = (0.3, 0.5, 0.7, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/image-to-image.png"))
    arguments = parser.parse_args()
    pipeline = TGatePipeline.from_bundle(arguments.bundle)
    rows = []
    for before, after in track(PROMPTS, "generating", console=Console(stderr=True), transient=True):
        image = np.asarray(pipeline(before, seed=1, output_type="np").images)[0]
        made = [
            np.asarray(
                pipeline(after, image=image, strength=strength, seed=2, output_type="np").images
            )[0]
            for strength in STRENGTHS
        ]
        rows.append((f"{before.split(' on ')[0]}\n-> {after.split(' on ')[0]}", [image, *made]))
    titles = [("the image", ""), *((f"strength {strength:g}", "") for strength in STRENGTHS)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    picture_grid(titles, rows).save(arguments.out)
    print(f"The picture is {arguments.out.resolve()}")


if __name__ == "__main__":
    main()
