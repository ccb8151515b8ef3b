"""What the chain says, in tables: read once, in order; again where the chain went another way."""
