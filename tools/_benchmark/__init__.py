"""The cases of tools/benchmark.py."""
