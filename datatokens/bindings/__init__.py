"""The contracts as typed calls, one file for each."""
