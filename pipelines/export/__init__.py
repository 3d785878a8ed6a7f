"""Delivery: a catalog's songs as a data set that other people's readers open. See `run.export_catalog`.

select the songs (the newest of each id) -> cut them into shards by what the rows say -> fetch or encode each song, in
order -> put each shard whole -> write the data-set card. Needs no Ray, and torch only to decode latents or resample.
"""
