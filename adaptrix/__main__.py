"""``python -m adaptrix``."""

from adaptrix.cli import main

main()
