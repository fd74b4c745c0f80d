"""Checkpoints and CLIP weights in the layouts in which people have them."""
