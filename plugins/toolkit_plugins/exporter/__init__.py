"""Exporters that come with the toolkit, and the model card that they share.

They get a finished model and leave it unchanged; checkpoints are the core's.
"""
