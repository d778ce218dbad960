"""Step plans: which phase each step runs, and which caches it reads and writes (no torch)."""
