"""`python -m latentwire.cli`."""

from latentwire.cli import main

main()
