"""The walls around a job: a process of its own that sees a model and a cohort, and nothing else."""
