"""Recipes: YAML text with places, the schema that validates it, and where recipes live."""
