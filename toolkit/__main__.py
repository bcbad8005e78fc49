"""`python -m toolkit`: the command where the scripts of an environment are not on PATH."""

from toolkit.cli.main import main

main()
