"""Data of the package: the trained demo pipeline `shapes` and the world that its pictures show."""

from pathlib import Path

SHAPES_DIR = Path(__file__).parent / "shapes"
"""The demo pipeline, in the directory layout of diffusers."""
