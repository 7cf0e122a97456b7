"""Which passes to run: pipelines, plans, and what they cost."""
