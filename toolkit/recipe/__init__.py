"""Recipes: YAML text with source positions, the schema that validates it, and where recipes live."""
