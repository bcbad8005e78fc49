"""Exporters that come with the toolkit."""
