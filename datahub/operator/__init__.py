"""What an operator does with a hub on a machine: serve, back up, put back, run as a service."""
