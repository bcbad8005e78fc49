"""Recipes: YAML text with source positions, its schema, and what it resolves to on a device.

Nothing here imports torch, and nothing is built: components are built in training/.
"""
