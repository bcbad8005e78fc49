"""Memory strategies that come with the toolkit: what each claims, requires and sets, and what it does to the model.

Conflicts between them are derived in toolkit/recipe; what happens when memory runs out is decided in toolkit/memory.
"""
