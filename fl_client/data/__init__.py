"""A hospital's tables: schema, manifest, how rows become numbers."""
