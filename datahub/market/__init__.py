"""The hub without HTTP: its tables, the catalogue, quotes, the jobs' loop, claims."""
