"""Stand-alone mathematics behind training and evaluation; one result a module, each runnable."""
