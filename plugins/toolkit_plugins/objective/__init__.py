"""Objectives that come with the toolkit: the tokens around documents and blocks, and the collator with the labels.

The core packs the blocks and computes the loss.
"""
