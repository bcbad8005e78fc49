"""Datasets that come with the toolkit, and the readers of their files: one document per row.

Sampling, holding out, cutting at end tokens and tokenizing are the core's, the same for every dataset.
"""
