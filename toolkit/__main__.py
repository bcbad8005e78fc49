"""`python -m toolkit`: the command line where an environment's scripts are not on PATH."""

from toolkit.cli.main import main

if __name__ == "__main__":  # not when multiprocessing imports this module in a worker
    main()
