"""Watching a study: what its files say, as a page, as metrics, and in a terminal."""
