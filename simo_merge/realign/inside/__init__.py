"""Re-alignment inside the encoder: of its weights, for all tasks at once."""
