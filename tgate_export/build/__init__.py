"""From a diffusers pipeline to a verified bundle: load, export, compare, pack."""
