"""Tokenizers that come with the toolkit: one trained on the documents, or a published one.

The core tokenizes and packs the documents, and caches what a tokenizer has learned.
"""
