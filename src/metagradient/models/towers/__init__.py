"""Encoders of images and of texts, for `TwoTower`."""
