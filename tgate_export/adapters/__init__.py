"""Files that change a model's weights: what is in them, and the change."""
