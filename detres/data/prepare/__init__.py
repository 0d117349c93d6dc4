"""Public data sets: downloaded, unpacked, verified."""
