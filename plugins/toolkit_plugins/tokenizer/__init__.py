"""Tokenizers that come with the toolkit."""
