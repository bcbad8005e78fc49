"""Callbacks that come with the toolkit."""
