"""Measurements and long checks that pytest does not run."""
