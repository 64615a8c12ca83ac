"""One table for one data set: accuracy × worst leak of each kind × cost, for every defence."""
