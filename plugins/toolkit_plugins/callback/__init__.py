"""Callbacks that come with the toolkit.

They observe a run, or end it early; logs, evaluations and saves at intervals are the core's.
"""
