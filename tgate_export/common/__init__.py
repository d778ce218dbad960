"""What every room may use: errors, the user's cache, progress, memory."""
