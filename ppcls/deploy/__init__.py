"""From a checkpoint to the fastest runnable form of it."""
