"""The contracts as typed calls, one file for each, and their errors as sentences."""
