"""Audits of an encoder's implementation: what leaks although the scheme was followed."""
