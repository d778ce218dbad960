"""Graphs and whole runs of a bundle against PyTorch."""
