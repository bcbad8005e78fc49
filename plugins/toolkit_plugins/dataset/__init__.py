"""Datasets that come with the toolkit."""
