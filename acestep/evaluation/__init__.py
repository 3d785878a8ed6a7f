"""Whether made music is what was asked for: its tempo, key, instrument and faults, and what a model's settings do.

Measures are of sound at 44.1 kHz and know no model; they are right for the music of `acestep.synth`.
"""
