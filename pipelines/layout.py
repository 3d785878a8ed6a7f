"""Where things lie in a catalog: the keys of its objects, all of them functions of what they hold.

run.json                                  settings, model, manifest, number of buckets; written when the plan is whole
plan/bucket=000000/<plan>.parquet         planned requests
plan/rejects.parquet                      rows that were refused, with reasons
plan/warnings.parquet                     rows that may be wrong, and are made
plan/estimate.json                        what the plan was estimated to take
audio/<hh>/<id>-<fingerprint>.<ext>       sound; hh spreads the keys
latents/<hh>/<id>-<fingerprint>.safetensors  what a song was decoded from, where it is kept
songs/bucket=000000/<run>-<n>.parquet     a row for each finished song: the commit
failed/bucket=000000/*.parquet            rows that could not be read or made
quarantine/<hh>/<id>-<fingerprint>.<ext>  sound that failed the quality gate
retried/bucket=000000/*.parquet           failures that are to be tried again
finished/bucket=000000.json               a bucket of which nothing is left to do, and for which plan
runs/<run>.json                           what each run did
runs/<run>/<batch>.json                   why a process ended itself, and on which batch
speeds.json                               how fast this catalog's songs were made
lease.json                                the run that is at work
progress.json                             where it stands
report.html
"""

from __future__ import annotations

import hashlib
import re

RUN = "run.json"
PLAN = "plan"
SONGS = "songs"
FAILED = "failed"
RETRIED = "retried"
FINISHED = "finished"
RUNS = "runs"
REJECTS = "plan/rejects.parquet"
WARNINGS = "plan/warnings.parquet"
PROGRESS = "progress.json"
LEASE = "lease.json"
SPEEDS = "speeds.json"
SOUND_FOLDERS = ("audio", "latents", "quarantine")
"""Folders of objects that rows name by their keys; one that no row names is an orphan."""
REJECTED_FILE = "rejected.parquet"

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]|^\.")
_LONGEST_NAME = 100


def bucket_of(id: str, num_buckets: int) -> int:
    """The bucket of a song: a hash of its id alone."""
    return int.from_bytes(_digest(id)[:8], "big") % num_buckets


def bucket_folder(kind: str, bucket: int) -> str:
    """The folder of a bucket below `plan`, `songs` or `failed`, as hive partitions are named."""
    return f"{kind}/bucket={bucket:06d}"


def plan_key(bucket: int, plan: str) -> str:
    """The object that holds one bucket of the plan called `plan`."""
    return f"{bucket_folder(PLAN, bucket)}/{plan}.parquet"


def audio_key(id: str, fingerprint: str, extension: str) -> str:
    """The object of a song's sound: readable, safe in any file system and URL, and no other song's.

    An id that has to be changed for that is told apart by a hash, behind a sign that unchanged ids do not have.
    """
    return f"audio/{_song_name(id, fingerprint)}{extension}"


def quarantine_key(id: str, fingerprint: str, extension: str) -> str:
    """The object of a song that failed the quality gate."""
    return f"quarantine/{_song_name(id, fingerprint)}{extension}"


def finished_key(bucket: int) -> str:
    """The marker of a bucket of which nothing is left to do."""
    return f"{FINISHED}/bucket={bucket:06d}.json"


def run_key(run: str) -> str:
    """What one run did."""
    return f"{RUNS}/{run}.json"


def last_words_key(run: str, batch: str) -> str:
    """Why a process of a run ended itself, while it made that batch."""
    return f"{RUNS}/{run}/{batch}.json"


def latents_key(id: str, fingerprint: str) -> str:
    """The object of what a song was decoded from."""
    return f"latents/{_song_name(id, fingerprint)}.safetensors"


def _song_name(id: str, fingerprint: str) -> str:
    digest = _digest(id).hex()
    name = _UNSAFE.sub("_", id)[:_LONGEST_NAME]
    if name != id:
        name = f"{name}~{digest[2:14]}"
    return f"{digest[:2]}/{name}-{fingerprint}"


def _digest(id: str) -> bytes:
    return hashlib.sha256(id.encode()).digest()
