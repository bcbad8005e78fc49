"""The machine: device, memory, disk, files, signals, processes, random number generators.

Nothing here knows of recipes or run directories.
"""
