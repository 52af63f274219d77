"""Detectors on HarDNet trunks. Importing `ssd` registers them."""
