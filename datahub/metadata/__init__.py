"""What is public of datasets and models, in the formats that others harvest."""
