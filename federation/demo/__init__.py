"""Three hospitals and a coordinator on one machine, as real processes, ending with a leak figure."""
