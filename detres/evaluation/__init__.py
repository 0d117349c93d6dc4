"""Measures: from arrays to figures, no model in sight."""
