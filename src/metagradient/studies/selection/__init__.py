"""Machinery of `selection`: what a kind of data adds to its story."""
