"""The verbs of the command line, one file each; thin, with imports inside the functions."""
