"""The run directory: records, metrics, checkpoints, and the thread that writes them.

What is in a checkpoint is decided in training/; files in general belong in system/.
"""
