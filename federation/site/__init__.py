"""What runs inside the hospital: the worker that owns the data, and the rules it obeys."""
