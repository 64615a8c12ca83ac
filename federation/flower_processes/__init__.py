"""The one adapter around Flower: its programs, flags, exit codes and internals.

Nothing else in the project starts a Flower program or calls its private functions, so a new
Flower version is met here. ``environment`` (switches), ``superlink`` (the coordinator's server
side), ``control`` (register nodes, submit and watch runs), ``bundle`` (what is shipped),
``node`` and ``relay_executor`` (the hospital's side). Importing this package imports no Flower.
"""
