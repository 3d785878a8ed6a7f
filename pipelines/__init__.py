"""From a manifest of requests to a catalog of songs, as one streaming Ray Data job.

read the manifest -> write the plan down -> cut it into batches -> generate (warm actors) -> encode and put (CPU tasks)
-> commit rows (this process alone). See `pipelines.run.run_job`.
"""
