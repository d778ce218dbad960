"""Data that ships with the package: the trained demo pipeline `shapes` and the world it draws."""

from pathlib import Path

SHAPES_DIR = Path(__file__).parent / "shapes"
"""The demo pipeline, in the directory layout of diffusers."""
