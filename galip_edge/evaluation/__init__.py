"""Metrics of image quality, and the evaluation of checkpoints and bundles."""
