"""Self-contained HTML reports of `bench` and `probe`."""
