"""`python -m tgate_export`."""

from tgate_export.cli import main

main()
