"""The command line: words in, calls to the core, words out. Nothing here decides what a run computes."""
