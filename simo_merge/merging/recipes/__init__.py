"""Merge recipes: YAML files in the style that merging people know."""
