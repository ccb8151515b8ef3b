"""The hub's door: the API and the pages."""
