"""Bulk generation: an image for every line of a file, in a folder that a later run completes."""
