"""What each model family is: how it loads, its graphs, its defaults."""
