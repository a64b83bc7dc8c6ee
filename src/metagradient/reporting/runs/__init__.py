"""The record of one run, and reading it back."""
