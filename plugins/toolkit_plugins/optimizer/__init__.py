"""Optimizers that come with the toolkit."""
