"""Optimizers that come with the toolkit.

One that trades accuracy for memory is a strategy, in memory/; the learning rate's schedule is the core's.
"""
