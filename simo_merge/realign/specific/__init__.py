"""Re-alignment inside the encoder for each task: blocks that a task runs for itself."""
