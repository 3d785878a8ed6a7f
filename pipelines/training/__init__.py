"""Training as a job: on Ray Train, or in this process."""
