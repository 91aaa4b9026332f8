"""What the benchmark scripts share: recipes, one seed's experts and models, resumable rows, tables, curves."""
