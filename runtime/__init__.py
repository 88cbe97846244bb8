"""The streaming pipeline and the commands that run it."""
