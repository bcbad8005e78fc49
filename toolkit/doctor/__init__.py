"""The machine examined before a run: what would stop it, what would slow it down, and the cure of each.

A check is a function of what it looks at (a folder, an environment, a file below /proc), so that a test can show it a
broken machine. What a run itself checks stays where the run is; this room asks the same functions.
"""
