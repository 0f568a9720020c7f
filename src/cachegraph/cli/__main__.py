"""`python -m cachegraph.cli`."""

from . import main

main()
