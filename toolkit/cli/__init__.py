"""The command line: parses arguments, calls the core, prints results.

Nothing here decides what a run computes, and nothing else prints.
"""
