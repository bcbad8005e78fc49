"""`python -m toolkit`: the command where the scripts of an environment are not on PATH."""

from toolkit.cli.main import main

if __name__ == "__main__":  # and not where multiprocessing imports this module into a worker
    main()
