"""The HTTP API of a real server: every endpoint, every error in its one shape, and callers who come and go."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import logging
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import soundfile
from prometheus_client.parser import text_string_to_metric_families

from acestep.audio_format import KINDS
from acestep.frames import num_samples
from acestep.request import derived_seed
from serve.api import create_app
from serve.auth import draw_key, hash_key
from serve.service import Service
from tests import stand_in
from tests.browser import browser
from tests.running_server import RunningServer, running_server, serve_config
from tests.test_service import MODEL
from tests.test_sources import sound

GONE = "job-20200101T000000000000-00000000"
SONG = {"prompt": "song", "duration": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


def submitted(client: httpx2.Client, **fields: Any) -> str:
    answer = client.post("/v1/audio/jobs", json=SONG | fields)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def ended(client: httpx2.Client, id: str) -> dict[str, Any]:
    """The job, once it is over."""
    return until(lambda: (job := shown(client, id))["status"] in ("completed", "failed", "cancelled") and job)


def shown(client: httpx2.Client, id: str) -> dict[str, Any]:
    answer = client.get(f"/v1/audio/jobs/{id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(done: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := done()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return answer


def error_of(answer: httpx2.Response, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The error of an answer, which has the one shape that there is."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"[A-Za-z0-9._:-]+", answer.headers["x-request-id"])
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "problems"}
    assert error["message"] and error["type"] and error["code"]
    assert all(set(problem) == {"param", "message"} for problem in error["problems"])
    if code:
        assert (error["code"], error["param"]) == (code, param)
    return error


def decoded(data: bytes) -> soundfile.SoundFile:
    return soundfile.SoundFile(io.BytesIO(data))


# Songs at once


def test_a_song_is_made_and_told_of(client: httpx2.Client) -> None:
    answer = client.post("/v1/audio/generations", json=SONG | {"seed": 7, "lyrics": "[verse]\nla"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    (entry,) = body["data"]
    assert set(entry) >= {"index", "url", "seed", "duration", "sample_rate", "bytes", "sha256", "format", "warnings"}
    assert (entry["index"], entry["seed"], entry["format"]) == (0, 7, "flac")
    assert entry["duration"] == num_samples(1) / 44_100 and entry["warnings"] == ["made by a stand-in"]
    assert not {"key", "latents"} & set(entry), "keys of the store are nobody's business"
    assert body["model"] == "stand-in" and abs(body["created"] - time.time()) < 60
    assert body["parameters"]["seed"] == 7 and body["parameters"]["num_inference_steps"] == 27
    audio = client.get(entry["url"])
    assert audio.headers["content-type"] == "audio/flac"
    assert len(audio.content) == entry["bytes"] and hashlib.sha256(audio.content).hexdigest() == entry["sha256"]
    again = client.post("/v1/audio/generations", json=body["parameters"])
    assert again.json()["data"][0]["seed"] == 7, "parameters are a body"
    assert shown(client, body["id"])["status"] == "completed"


@pytest.mark.parametrize(("header", "body"), [({"Accept": "audio/*"}, {}), ({}, {"stream_format": "audio"})])
def test_raw_audio(client: httpx2.Client, header: dict[str, str], body: dict[str, Any]) -> None:
    asked = SONG | {"seed": 9, "response_format": "mp3"} | body
    answer = client.post("/v1/audio/generations", json=asked, headers=header)
    assert answer.status_code == 200 and answer.headers["content-type"] == "audio/mpeg"
    assert decoded(answer.content).samplerate == 44_100
    assert answer.headers["x-seed"] == "9" and answer.headers["x-sample-rate"] == "44100"
    assert float(answer.headers["x-audio-duration"]) == pytest.approx(num_samples(1) / 44_100, abs=1e-5)
    error_of(client.post("/v1/audio/generations", json=asked | {"n": 2}, headers=header), 422, "invalid_value", "n")


def test_audio_in_the_answer_itself(client: httpx2.Client, server: RunningServer) -> None:
    body = client.post("/v1/audio/generations", json=SONG | {"n": 2, "delivery": "b64_json"}).json()
    for entry in body["data"]:
        assert "url" not in entry
        data = base64.b64decode(entry["b64_json"])
        assert hashlib.sha256(data).hexdigest() == entry["sha256"] and decoded(data).frames == num_samples(1)
    error_of(client.get(f"/v1/audio/jobs/{body['id']}"), 404, "job_not_found")
    assert not server.service.storage.keys(f"audio/{body['id']}"), "what is taken along is not kept"


def test_several_songs_have_seeds_of_their_own(client: httpx2.Client) -> None:
    body = client.post("/v1/audio/generations", json=SONG | {"n": 3, "seed": [5, 6, 7]}).json()
    assert [entry["seed"] for entry in body["data"]] == [5, 6, 7] == body["parameters"]["seed"]
    assert [entry["index"] for entry in body["data"]] == [0, 1, 2]
    assert len({entry["sha256"] for entry in body["data"]}) == 3
    one = client.post("/v1/audio/generations", json=SONG | {"n": 2, "seed": 5}).json()
    assert [entry["seed"] for entry in one["data"]] == [5, derived_seed("song", 5, 1)]


def test_other_servers_names_are_understood(client: httpx2.Client) -> None:
    body = {"input": "song", "audio_length": 1, "infer_step": 9, "scheduler_type": "heun", "cfg_type": "cfg"}
    made = client.post("/v1/audio/generations", json=body).json()["parameters"]
    assert (made["prompt"], made["duration"], made["num_inference_steps"]) == ("song", 1, 9)
    assert (made["scheduler"], made["guidance"]) == ("heun", "cfg")


def test_the_body_of_another_server(client: httpx2.Client) -> None:
    body = {
        "model": "stand-in",
        "input": "song",
        "audio_length": 1.0,
        "audio_start": 0.0,
        "negative_prompt": "",
        "speed": 1.0,
        "guidance_scale": 7.0,
        "num_inference_steps": 10,
        "seed": 42,
        "response_format": "wav",
    }
    answer = client.post("/v1/audio/generate", json=body)
    assert answer.status_code == 200 and answer.headers["content-type"] == "audio/wav"
    assert decoded(answer.content).frames == num_samples(1) and answer.headers["x-seed"] == "42"
    assert client.post("/v1/audio/generate", json=SONG).headers["content-type"] == "audio/wav"
    for name, value in (("speed", 2.0), ("audio_start", 3), ("negative_prompt", "drums")):
        error_of(client.post("/v1/audio/generate", json=body | {name: value}), 422, "invalid_value", name)


def test_a_failed_song_is_an_error_for_who_waits(client: httpx2.Client) -> None:
    error = error_of(client.post("/v1/audio/generations", json=SONG | {"prompt": "refuse"}), 500)
    assert error["code"] == "out_of_memory" and error["message"] == "told to refuse"
    error = error_of(client.post("/v1/audio/generations", json=SONG | {"prompt": "raise"}), 500)
    assert "log says why" in error["message"] and "RuntimeError" not in error["message"]


# Jobs


def test_a_job_from_its_beginning_to_its_end(client: httpx2.Client) -> None:
    answer = client.post("/v1/audio/jobs", json=SONG | {"prompt": "song slow:0.3", "n": 2})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/audio/jobs/{job['id']}"
    assert re.fullmatch(r"job-\d{8}T\d{12}-[0-9a-f]{8}", job["id"]) and job["object"] == "audio.job"
    assert (job["status"], job["progress"], job["queue_position"], job["n"]) == ("queued", 0, 1, 2)
    assert job["started_at"] is job["completed_at"] is job["error"] is None and job["data"] == []
    assert job["expires_at"] > job["created_at"] + 86_400
    done = ended(client, job["id"])
    assert set(done) == set(job)
    assert (done["status"], done["progress"], done["attempts"], done["queue_position"]) == ("completed", 1, 1, None)
    assert done["created_at"] <= done["started_at"] <= done["completed_at"] and done["inference_time_s"] > 0.5
    assert [entry["url"][-1] for entry in done["data"]] == ["0", "1"]
    assert client.delete(f"/v1/audio/jobs/{job['id']}").json() == {
        "id": job["id"],
        "object": "audio.job",
        "deleted": True,
    }
    for path in ("", "/content", "/events"):
        error_of(client.get(f"/v1/audio/jobs/{job['id']}{path}"), 404, "job_not_found")
    error_of(client.delete(f"/v1/audio/jobs/{job['id']}"), 404, "job_not_found")


def test_a_failed_job_says_why(client: httpx2.Client) -> None:
    job = ended(client, submitted(client, prompt="refuse"))
    assert job["status"] == "failed" and job["error"]["message"] == "told to refuse"
    error_of(client.get(f"/v1/audio/jobs/{job['id']}/content"), 409, "never_made")


def test_events_tell_how_far_it_is(client: httpx2.Client) -> None:
    id = submitted(client, prompt="song slow:0.8")
    events = []
    with client.stream("GET", f"/v1/audio/jobs/{id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event: "):
                events.append([line.removeprefix("event: ")])
            elif line.startswith("data: "):
                events[-1].append(json.loads(line.removeprefix("data: ")))
    kinds = [kind for kind, _ in events]
    assert kinds[-1] == "completed" and set(kinds[:-1]) == {"progress"} and len(kinds) >= 3
    progress = [job["progress"] for _, job in events]
    assert progress == sorted(progress) and progress[-1] == 1 and any(0 < each < 1 for each in progress)
    assert events[-1][1] == shown(client, id)
    with client.stream("GET", f"/v1/audio/jobs/{id}/events") as stream:
        assert next(iter(stream.iter_lines())) == "event: completed", "one that is over says so at once"


def test_events_of_a_waiting_job_tell_its_place(client: httpx2.Client) -> None:
    first = submitted(client, prompt="song slow:0.6", num_inference_steps=3)
    until(lambda: shown(client, first)["status"] == "in_progress")
    second = submitted(client, prompt="song slow:0.6", num_inference_steps=4)
    third = submitted(client, prompt="song", num_inference_steps=5, duration=200)
    with client.stream("GET", f"/v1/audio/jobs/{third}/events") as stream:
        data = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    places = [job["queue_position"] for job in data if job["status"] == "queued"]
    assert places[0] == 2 and places[-1] in (1, 2) and data[-1]["status"] == "completed"
    ended(client, second)


def test_pages_of_jobs(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, server.client() as client:
        assert client.get("/v1/audio/jobs").json() == {
            "object": "list",
            "data": [],
            "has_more": False,
            "first_id": None,
            "last_id": None,
        }
        ids = [submitted(client, prompt=prompt) for prompt in ("song", "refuse", "song", "song", "refuse")]
        for id in ids:
            ended(client, id)
        page = client.get("/v1/audio/jobs", params={"limit": 2}).json()
        assert [job["id"] for job in page["data"]] == ids[:2:-1] and page["has_more"]
        assert (page["first_id"], page["last_id"]) == (ids[4], ids[3])
        seen = []
        after = None
        while True:
            params = {"limit": 2, "order": "asc"} | ({"after": after} if after else {})
            page = client.get("/v1/audio/jobs", params=params).json()
            seen += [job["id"] for job in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert seen == ids
        failed = client.get("/v1/audio/jobs", params={"status": "failed", "order": "asc"}).json()
        assert [job["id"] for job in failed["data"]] == [ids[1], ids[4]] and not failed["has_more"]
        assert client.get("/v1/audio/jobs", params={"status": "queued"}).json()["data"] == []


def test_many_at_once_and_a_bad_one_is_no_others_problem(client: httpx2.Client) -> None:
    items = [{"prompt": "song"}, {"prompt": "", "seed": -1}, "junk", {"input": "song", "seconds": 2}, {"promt": "x"}]
    body = {"defaults": {"duration": 1, "num_inference_steps": 3}, "items": items}
    answer = client.post("/v1/audio/jobs", json=body)
    assert answer.status_code == 202
    data = answer.json()["data"]
    assert [entry["index"] for entry in data] == [0, 1, 2, 3, 4]
    assert [entry["status"] == "failed" for entry in data] == [False, True, True, False, True]
    assert {data[0]["status"], data[3]["status"]} <= {"queued", "in_progress", "completed"}  # the engine may be quick
    assert [problem["param"] for problem in data[1]["error"]["problems"]] == ["seed", "prompt"]
    assert data[2]["error"]["param"] == "items" and "did you mean 'prompt'?" in data[4]["error"]["message"]
    done = ended(client, data[3]["id"])
    assert done["parameters"]["duration"] == 2 and done["parameters"]["num_inference_steps"] == 3
    for wrong, param in (
        ({"items": []}, "items"),
        ({"items": [{}] * 101}, "items"),
        ({"items": "x"}, "items"),
        ({"items": [{}], "defaults": 3}, "defaults"),
        ({"items": [{}], "prompt": "x"}, "prompt"),
    ):
        error_of(client.post("/v1/audio/jobs", json=wrong), 422, "invalid_value", param)


# Leaving


def left_by(prefix: str) -> dict[str, int]:
    return {id: step for id, step in stand_in.LEFT.items() if id.startswith(prefix)}


def test_a_caller_who_hangs_up_stops_the_engine(client: httpx2.Client, server: RunningServer) -> None:
    before = set(stand_in.LEFT)
    body = json.dumps(SONG | {"prompt": "song slow:60", "delivery": "b64_json"}).encode()
    head = f"POST /v1/audio/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    address = httpx2.URL(server.url)
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(head + body)
        until(lambda: client.get("/v1/stats").json()["running"] == 1)
        time.sleep(0.3)
    (id,) = until(lambda: set(stand_in.LEFT) - before)
    assert 0 < stand_in.LEFT[id] < 100, "of 600 steps"
    until(lambda: client.get("/v1/stats").json()["running"] == 0)
    assert client.post("/v1/audio/generations", json=SONG).status_code == 200, "the engine goes on"


def test_a_job_that_is_deleted_leaves_its_batch_and_the_others_stay(client: httpx2.Client) -> None:
    blocker = submitted(client, prompt="song slow:0.4", num_inference_steps=3)
    until(lambda: shown(client, blocker)["status"] == "in_progress")
    unwanted = submitted(client, prompt="song slow:60")
    mate = submitted(client, prompt="song slow:0.3")
    until(lambda: shown(client, unwanted)["step"] > 0)
    assert shown(client, mate)["status"] == "in_progress", "in one batch"
    answer = client.delete(f"/v1/audio/jobs/{unwanted}")
    assert answer.status_code == 200 and answer.json()["status"] == "cancelled"
    done = ended(client, mate)
    assert done["status"] == "completed" and done["data"][0]["batch_size"] == 2
    assert 0 < left_by(unwanted)[f"{unwanted}/0"] < 100 and not left_by(mate)
    job = shown(client, unwanted)
    assert job["status"] == "cancelled" and job["data"] == [] and job["completed_at"]
    error_of(client.get(f"/v1/audio/jobs/{unwanted}/content"), 409, "never_made")
    assert client.delete(f"/v1/audio/jobs/{unwanted}").json()["deleted"]


def test_a_job_that_waits_is_deleted_before_anybody_makes_it(client: httpx2.Client) -> None:
    blocker = submitted(client, prompt="song slow:0.4")
    until(lambda: shown(client, blocker)["status"] == "in_progress")
    waiting = submitted(client)
    assert client.delete(f"/v1/audio/jobs/{waiting}").json()["status"] == "cancelled"
    assert ended(client, blocker)["status"] == "completed"
    assert shown(client, waiting)["started_at"] is None


def test_who_waits_for_a_job_that_another_deletes_is_told(client: httpx2.Client) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    with ThreadPoolExecutor(1) as pool:
        body = SONG | {"prompt": "song slow:60"}
        waiting = pool.submit(client.post, "/v1/audio/generations", json=body, headers=key)
        (job,) = until(lambda: client.get("/v1/audio/jobs", params={"status": "in_progress"}).json()["data"])
        client.delete(f"/v1/audio/jobs/{job['id']}")
        error_of(waiting.result(), 409, "cancelled")


def test_the_next_server_makes_what_the_last_one_did_not(tmp_path: Path) -> None:
    with running_server(tmp_path, batch__max_batch_size=1) as server, server.client() as client:
        done = submitted(client)
        ended(client, done)
        running, waiting = submitted(client, prompt="song slow:5"), submitted(client)
        until(lambda: shown(client, running)["step"] > 0 or shown(client, waiting)["step"] > 0)
    with running_server(tmp_path, batch__max_batch_size=4) as server, server.client() as client:
        assert shown(client, done)["status"] == "completed"
        assert client.get(f"/v1/audio/jobs/{done}/content").status_code == 200
        assert ended(client, waiting)["status"] == ended(client, running)["status"] == "completed"


# Audio


@pytest.mark.parametrize("wanted", KINDS)
@pytest.mark.parametrize("stored", ["wav", "opus"])
def test_content_in_every_format(client: httpx2.Client, stored: str, wanted: str) -> None:
    id = submitted(client, response_format=stored, duration=2)
    made = ended(client, id)["data"][0]
    answer = client.get(f"/v1/audio/jobs/{id}/content", params={"format": wanted, "download": "1"})
    assert answer.status_code == 200 and answer.headers["content-type"] == KINDS[wanted].media_type
    assert answer.headers["content-disposition"] == f'attachment; filename="{id}-0.{wanted}"'
    with decoded(answer.content) as file:
        assert file.channels == 2 and file.frames / file.samplerate == pytest.approx(made["duration"], abs=0.06)
        assert abs(file.read()).max() > 0.1
    if wanted == stored:
        assert hashlib.sha256(answer.content).hexdigest() == made["sha256"]


def test_ranges_are_parts_of_the_whole(client: httpx2.Client) -> None:
    url = f"/v1/audio/jobs/{submitted(client)}/content"
    whole = until(lambda: (answer := client.get(url)).status_code == 200 and answer)
    size, etag = len(whole.content), whole.headers["etag"]
    assert whole.headers["accept-ranges"] == "bytes" and "content-disposition" not in whole.headers
    for asked, start, end in (
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=100-", 100, size - 1),
        ("bytes=-10", size - 10, size - 1),
        (f"bytes=-{10 * size}", 0, size - 1),
        (f"bytes=5-{10 * size}", 5, size - 1),
    ):
        part = client.get(url, headers={"Range": asked})
        assert part.status_code == 206 and part.content == whole.content[start : end + 1]
        assert part.headers["content-range"] == f"bytes {start}-{end}/{size}" and part.headers["etag"] == etag
    for junk in ("bytes=", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1,4-5"):
        assert client.get(url, headers={"Range": junk}).status_code == 200
    for outside in (f"bytes={size}-", "bytes=999999999-", "bytes=-0"):
        answer = client.get(url, headers={"Range": outside})
        error_of(answer, 416, "range_not_satisfiable", "Range")
        assert answer.headers["content-range"] == f"bytes */{size}"


def test_content_that_there_is_not(client: httpx2.Client) -> None:
    id = submitted(client)
    ended(client, id)
    error_of(client.get(f"/v1/audio/jobs/{id}/content", params={"index": 1}), 404, "no_such_song", "index")
    error_of(client.get(f"/v1/audio/jobs/{id}/content", params={"format": "aac"}), 422, "invalid_value", "format")
    error_of(client.get(f"/v1/audio/jobs/{id}/content", params={"index": -1}), 400, "invalid_value", "index")


# Sources


def repaint(source: str, **more: Any) -> dict[str, Any]:
    return {"prompt": "song", "task": "repaint", "source": source, "repaint_start": 0, "repaint_end": 1, **more}


def begun_with(made: dict[str, Any]) -> int:
    (said,) = (word for word in made["data"][0]["warnings"] if word.startswith("begun with "))
    return int(said.split()[2])


def test_songs_begin_with_uploads(client: httpx2.Client) -> None:
    data = sound(1.5)
    answer = client.post("/v1/audio/uploads", files={"file": ("mine.wav", data)})
    assert answer.status_code == 201
    upload = answer.json()
    assert set(upload) == {"id", "object", "bytes", "duration", "sample_rate", "channels", "expires_at"}
    assert (upload["object"], upload["bytes"], upload["duration"]) == ("upload", len(data), 1.5)
    made = client.post("/v1/audio/generations", json=repaint(f"upload:{upload['id'].removeprefix('upload:')}"))
    assert made.status_code == 200, made.text
    assert begun_with(made.json()) == len(data)


def test_songs_begin_with_songs_of_jobs(client: httpx2.Client) -> None:
    job = ended(client, submitted(client, n=2, response_format="wav"))
    for source, index in ((f"job:{job['id']}", 0), (f"job:{job['id']}/1", 1)):
        made = client.post("/v1/audio/generations", json=repaint(source))
        assert made.status_code == 200, made.text
        assert begun_with(made.json()) == job["data"][index]["bytes"]
    error_of(client.post("/v1/audio/jobs", json=repaint(f"job:{job['id']}/2")), 404, "job_not_found", "source")
    error_of(client.post("/v1/audio/jobs", json=repaint(f"job:{GONE}")), 404, "job_not_found", "source")


def test_audio_comes_with_the_request(client: httpx2.Client) -> None:
    data = sound(1)
    url = f"data:audio/wav;base64,{base64.b64encode(data).decode()}"
    assert begun_with(client.post("/v1/audio/generations", json=repaint(url)).json()) == len(data)
    fields = {name: str(value) for name, value in repaint("").items() if name != "source"}
    files = {"source": ("a.wav", data)}
    for path in ("/v1/audio/generations", "/v1/audio/jobs"):
        answer = client.post(path, data=fields, files=files)
        assert answer.status_code in (200, 202), answer.text
        assert begun_with(ended(client, answer.json()["id"])) == len(data)
    assert client.post("/v1/audio/generate", data=fields, files=files).headers["content-type"] == "audio/wav"


def test_a_source_that_goes_while_its_song_waits_is_named(client: httpx2.Client) -> None:
    first = ended(client, submitted(client))["id"]
    blocker = submitted(client, prompt="song slow:0.4")
    until(lambda: shown(client, blocker)["status"] == "in_progress")
    second = client.post("/v1/audio/jobs", json=repaint(f"job:{first}")).json()["id"]
    assert client.delete(f"/v1/audio/jobs/{first}").json()["deleted"]
    job = ended(client, second)
    assert job["status"] == "failed" and "source: it is not there any more" in job["error"]["message"]


@pytest.mark.parametrize(
    "source", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/x", "upload:nope", "song:1", "data:audio/wav,x"]
)
def test_sources_that_nobody_may_name(client: httpx2.Client, source: str) -> None:
    error_of(client.post("/v1/audio/jobs", json=repaint(source)), 422, "invalid_value", "source")


def test_an_upload_is_one_file_of_audio(client: httpx2.Client) -> None:
    error_of(client.post("/v1/audio/uploads", files={"file": ("a.wav", b"junk")}), 422, "invalid_value", "file")
    error_of(client.post("/v1/audio/uploads", json={"file": "x"}), 422, "invalid_value", "file")
    both = client.post("/v1/audio/uploads", data={"prompt": "x"}, files={"file": ("a.wav", sound())})
    error_of(both, 422, "invalid_value", "file")


# Errors


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "param"),
    [
        ("GET", "/nowhere", 404, "no_such_endpoint", None),
        ("GET", "/v1/audio/nowhere", 404, "no_such_endpoint", None),
        ("GET", "/page/nothing.js", 404, "not_found", None),
        ("GET", "/docs/nothing.js", 404, "not_found", None),
        ("GET", "/v1/audio/generations", 405, "bad_request", None),
        ("PUT", "/v1/audio/jobs", 405, "bad_request", None),
        ("GET", f"/v1/audio/jobs/{GONE}", 404, "job_not_found", None),
        ("GET", f"/v1/audio/jobs/{GONE}/content", 404, "job_not_found", None),
        ("GET", f"/v1/audio/jobs/{GONE}/events", 404, "job_not_found", None),
        ("DELETE", f"/v1/audio/jobs/{GONE}", 404, "job_not_found", None),
        ("GET", "/v1/audio/jobs/..%2f..%2fetc", 404, None, None),
        ("GET", "/v1/audio/jobs/%ED%A0%80", 404, "job_not_found", None),
        ("GET", "/v1/audio/jobs?limit=0", 400, "invalid_value", "limit"),
        ("GET", "/v1/audio/jobs?limit=x", 400, "invalid_value", "limit"),
        ("GET", "/v1/audio/jobs?order=up", 400, "invalid_value", "order"),
        ("GET", "/v1/audio/jobs?status=done", 400, "invalid_value", "status"),
        ("POST", "/v1/audio/generations", 400, "invalid_json", None),
        ("POST", "/v1/audio/generate", 400, "invalid_json", None),
        ("POST", "/v1/audio/jobs", 400, "invalid_json", None),
        ("POST", "/v1/audio/uploads", 400, "invalid_json", None),
    ],
)
def test_errors_have_one_shape(
    client: httpx2.Client, method: str, path: str, status: int, code: str | None, param: str | None
) -> None:
    error_of(client.request(method, path), status, code, param)


@pytest.mark.parametrize("path", ["/v1/audio/generations", "/v1/audio/generate", "/v1/audio/jobs"])
def test_every_problem_of_a_body_is_told_at_once(client: httpx2.Client, path: str) -> None:
    body = {"prompt": "", "duration": 1000, "schedular": "heun", "seed": -1, "n": 0, "response_format": "aac"}
    error = error_of(client.post(path, json=body), 422)
    assert {problem["param"] for problem in error["problems"]} == set(body)
    assert error["param"] == error["problems"][0]["param"]
    assert all(problem["message"] in error["message"] for problem in error["problems"])


def test_a_request_has_a_name(client: httpx2.Client) -> None:
    assert client.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for strange in ("a b", "x" * 200, 'a"b'):
        given = client.get("/health", headers={"X-Request-Id": strange}).headers["x-request-id"]
        assert given != strange and re.fullmatch(r"[0-9a-f]{32}", given)


def test_what_is_too_large(tmp_path: Path) -> None:
    limits = {"http__max_body_bytes": 2000, "sources__max_bytes": 50_000}
    with running_server(tmp_path, **limits) as server, server.client() as client:
        error_of(client.post("/v1/audio/jobs", json=SONG | {"lyrics": "x" * 3000}), 413, "too_large")
        chunks = (b" " * 100 for _ in range(100))
        error_of(client.post("/v1/audio/jobs", content=chunks), 413, "too_large")
        file = {"file": ("a.wav", sound(1))}
        error_of(client.post("/v1/audio/uploads", files=file), 413, "too_large")
        assert client.post("/v1/audio/uploads", files={"file": ("a.wav", sound(0.1))}).status_code == 201


def test_a_full_queue(tmp_path: Path) -> None:
    with running_server(tmp_path, queue__max_songs=2) as server, server.client() as client:
        blocker = submitted(client, prompt="song slow:60")
        until(lambda: shown(client, blocker)["status"] == "in_progress")
        waiting = [submitted(client), submitted(client)]
        for path in ("/v1/audio/jobs", "/v1/audio/generations"):
            answer = client.post(path, json=SONG)
            error = error_of(answer, 429, "queue_full")
            assert int(answer.headers["retry-after"]) >= 1 and error["type"] == "rate_limit_error"
        many = client.post("/v1/audio/jobs", json={"items": [SONG]}).json()["data"]
        assert many[0]["error"]["code"] == "queue_full"
        client.delete(f"/v1/audio/jobs/{waiting[0]}")
        assert client.post("/v1/audio/jobs", json=SONG).status_code == 202
        client.delete(f"/v1/audio/jobs/{blocker}")


def test_while_the_model_is_loaded(tmp_path: Path) -> None:
    with running_server(tmp_path, engine_starts=False) as server, server.client() as client:
        assert client.get("/health").json() == {"status": "alive"}
        for answer in (client.get("/ready"), client.post("/v1/audio/generations", json=SONG)):
            error_of(answer, 503, "warming_up")
            assert int(answer.headers["retry-after"]) >= 1
        error_of(client.post("/v1/audio/generations", json={}), 422)
        assert client.get("/v1/models").json()["data"][0]["ready"] is False
        job = client.post("/v1/audio/jobs", json=SONG).json()
        assert (job["status"], job["expected_wait_seconds"]) == ("queued", None)


def test_a_caller_does_not_wait_for_ever(tmp_path: Path) -> None:
    with running_server(tmp_path, jobs__deadline_seconds=0.5) as server, server.client() as client:
        answer = client.post("/v1/audio/generations", json=SONG | {"prompt": "song slow:60"})
        assert error_of(answer, 504, "deadline_exceeded")["type"] == "timeout_error"
        until(lambda: client.get("/v1/stats").json()["running"] == 0, seconds=5)


# Idempotency


def test_one_key_is_one_song(client: httpx2.Client) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = SONG | {"prompt": "song slow:0.2"}
    with ThreadPoolExecutor(4) as pool:
        posts = [pool.submit(client.post, "/v1/audio/generations", json=body, headers=key) for _ in range(4)]
        answers = [post.result() for post in posts]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    later = client.post("/v1/audio/generations", json=body, headers=key | {"Accept": "audio/flac"})
    assert later.content == client.get(answers[0].json()["data"][0]["url"]).content
    conflict = client.post("/v1/audio/generations", json=SONG, headers=key)
    error_of(conflict, 409, "idempotency_conflict", "Idempotency-Key")


def test_one_key_is_one_job(client: httpx2.Client) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first, second = (client.post("/v1/audio/jobs", json=SONG, headers=key) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert "idempotent-replayed" not in first.headers and second.headers["idempotent-replayed"] == "true"
    other = client.post("/v1/audio/jobs", json=SONG | {"seed": 1}, headers=key)
    error_of(other, 409, "idempotency_conflict", "Idempotency-Key")
    form = {"Idempotency-Key": uuid.uuid4().hex}
    fields = {"prompt": "song", "task": "repaint", "repaint_end": "1"}
    answers = [
        client.post("/v1/audio/jobs", data=fields, files={"source": ("a.wav", sound(length))}, headers=form)
        for length in (1, 1, 1.5)
    ]
    assert [answer.status_code for answer in answers] == [202, 202, 409], "another file is another body"


def test_many_with_a_key(client: httpx2.Client) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"items": [SONG, {"prompt": ""}, SONG]}
    first, second = (client.post("/v1/audio/jobs", json=body, headers=key).json()["data"] for _ in range(2))
    assert [entry.get("id") for entry in first] == [entry.get("id") for entry in second]
    assert first[1] == second[1] and len({first[0]["id"], first[2]["id"]}) == 2


# Keys


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx2.Client]]:
    """Clients of a server with keys."""
    keys = {name: draw_key() for name in ("ann", "bob", "busy")}
    hashes = {name: hash_key(key) for name, key in keys.items()}
    limits = {"auth__keys": hashes, "auth__requests_per_minute": 40, "auth__max_concurrent": 8}
    with running_server(tmp_path_factory.mktemp("guarded"), **limits) as server:
        clients = {name: server.client(headers={"Authorization": f"Bearer {key}"}) for name, key in keys.items()}
        clients[""] = server.client()
        yield clients
        for client in clients.values():
            client.close()


def test_without_a_key_there_is_only_the_way_in(guarded: dict[str, httpx2.Client]) -> None:
    stranger = guarded[""]
    for path in ("/", "/health", "/ready", "/metrics", "/openapi.json", "/docs", "/page/main.js"):
        assert stranger.get(path).status_code == 200, path
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/v1/stats"),
        ("GET", "/v1/audio/jobs"),
        ("POST", "/v1/audio/generations"),
        ("POST", "/v1/audio/uploads"),
        ("DELETE", f"/v1/audio/jobs/{GONE}"),
    ):
        answer = stranger.request(method, path)
        error_of(answer, 401, "no_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        error_of(stranger.request(method, path, headers={"Authorization": "Bearer x"}), 401, "invalid_api_key")


@pytest.mark.parametrize("prefix", ["", "/music"])
def test_a_server_below_a_prefix_is_guarded_as_well(tmp_path: Path, prefix: str) -> None:
    service = Service(serve_config(tmp_path, auth__keys={"ann": hash_key(draw_key())}), MODEL)

    async def statuses(*paths: str) -> list[int]:
        transport = httpx2.ASGITransport(create_app(service), root_path=prefix)
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            return [(await client.get(f"{prefix}{path}")).status_code for path in paths]

    guarded = ("/v1/models", "/v1/audio/jobs", "/v1/stats", "/page/../v1/stats", "//v1/stats", "/nowhere")
    assert set(asyncio.run(statuses(*guarded))) <= {401, 404}
    assert asyncio.run(statuses("/v1/models", "/v1/stats")) == [401, 401]
    assert asyncio.run(statuses("/health")) == [200]


def test_one_key_never_sees_anothers_jobs(guarded: dict[str, httpx2.Client]) -> None:
    ann, bob = guarded["ann"], guarded["bob"]
    key = {"Idempotency-Key": "the same"}
    id = ann.post("/v1/audio/jobs", json=SONG, headers=key).json()["id"]
    ended(ann, id)
    assert bob.get("/v1/audio/jobs").json()["data"] == []
    for path in ("", "/content", "/events"):
        error_of(bob.get(f"/v1/audio/jobs/{id}{path}"), 404, "job_not_found")
    error_of(bob.delete(f"/v1/audio/jobs/{id}"), 404, "job_not_found")
    error_of(bob.post("/v1/audio/jobs", json=repaint(f"job:{id}")), 404, "job_not_found", "source")
    other = bob.post("/v1/audio/jobs", json=SONG, headers=key).json()["id"]
    assert other != id, "keys of clients are their own, too"
    assert [job["id"] for job in bob.get("/v1/audio/jobs").json()["data"]] == [other]
    assert [job["id"] for job in ann.get("/v1/audio/jobs").json()["data"]] == [id]
    assert ann.post("/v1/audio/jobs", json=repaint(f"job:{id}")).status_code == 202
    assert ann.delete(f"/v1/audio/jobs/{id}").json()["deleted"]


def test_a_key_may_ask_so_often(guarded: dict[str, httpx2.Client]) -> None:
    answers = [guarded["busy"].post("/v1/audio/jobs", json={}) for _ in range(41)]
    assert {answer.status_code for answer in answers[:40]} == {422}
    error_of(answers[40], 429, "rate_limit_exceeded")
    assert 1 <= int(answers[40].headers["retry-after"]) <= 60
    assert guarded["bob"].post("/v1/audio/jobs", json={}).status_code == 422


# Around it


def test_pages_of_other_origins_may_not_call_unless_told_so(client: httpx2.Client, tmp_path: Path) -> None:
    page = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    refused = client.options("/v1/audio/jobs", headers=page)
    assert refused.status_code == 405 and "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=page).headers
    keys = {"ann": hash_key(draw_key())}
    with (
        running_server(tmp_path, http__cors_origins=["https://app.example"], auth__keys=keys) as server,
        server.client() as other,
    ):
        allowed = other.options("/v1/audio/jobs", headers=page | {"Access-Control-Request-Headers": "authorization"})
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://app.example"
        answer = other.get("/v1/models", headers=page)
        assert answer.headers["access-control-allow-origin"] == "https://app.example" and answer.status_code == 401
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
        foreign = other.get("/health", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers


def test_the_audit_log_says_who_and_never_what(client: httpx2.Client, caplog: pytest.LogCaptureFixture) -> None:
    secret = "a very private song"
    with caplog.at_level(logging.INFO):
        answer = client.post(
            "/v1/audio/generations?prompt=hidden",
            json=SONG | {"prompt": secret, "lyrics": f"[verse]\n{secret}"},
            headers={"X-Request-Id": "audited"},
        )
        assert answer.status_code == 200
        client.post("/v1/audio/generations", json={"prompt": secret, "durattion": 1})
        client.get("/health")
        until(lambda: len([record for record in caplog.records if record.name == "serve.audit"]) >= 2)
    lines = [json.loads(record.message) for record in caplog.records if record.name == "serve.audit"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/v1/audio/generations", 200),
        ("POST", "/v1/audio/generations", 422),
    ]
    assert lines[0]["request"] == "audited" and lines[0]["client"] == "127.0.0.1" and lines[0]["key"] is None
    assert lines[0]["bytes"] == len(answer.content) and lines[0]["ms"] > 0
    assert secret not in caplog.text and "hidden" not in str(lines)


def test_metrics_can_be_scraped(client: httpx2.Client) -> None:
    client.post("/v1/audio/generations", json=SONG)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["acestep_engines"].samples[0].value == 1
    assert families["acestep_queue_wait_seconds"].type == "histogram"
    counted = {
        (sample.labels["route"], sample.labels["status"])
        for sample in families["acestep_http_requests"].samples
        if sample.name.endswith("_total")
    }
    assert ("/v1/audio/generations", "200") in counted
    assert {route for route, _ in counted if "job-" in route} == set(), "ids would make a series each"


def test_models_and_stats(client: httpx2.Client) -> None:
    body = client.get("/v1/models").json()
    (model,) = body["data"]
    assert body["object"] == "list" and model["id"] == "stand-in" and model["ready"] and model["random_weights"]
    assert set(model) >= {"dtype", "fingerprint", "max_duration", "formats", "languages", "defaults"}
    assert model["formats"] == list(KINDS) and model["defaults"]["duration"] == 30
    before = client.get("/v1/stats").json()
    assert client.post("/v1/audio/generations", json=SONG | {"duration": 2}).status_code == 200
    after = client.get("/v1/stats").json()
    assert after["completed"] == before["completed"] + 1
    assert after["audio_seconds"] - before["audio_seconds"] == pytest.approx(num_samples(2) / 44_100, abs=0.01)
    assert {"queued", "running", "queue_frames", "engines", "ready", "failed", "cancelled", "rerun"} <= set(after)


def test_the_description_of_the_api_is_valid_and_complete(client: httpx2.Client) -> None:
    document = client.get("/openapi.json").json()
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(document)
    for name, schema in document["components"]["schemas"].items():
        assert schema["type"] == "object" and schema["properties"], name
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described >= {
        ("POST", "/v1/audio/generations"),
        ("POST", "/v1/audio/generate"),
        ("POST", "/v1/audio/jobs"),
        ("GET", "/v1/audio/jobs"),
        ("GET", "/v1/audio/jobs/{id}"),
        ("DELETE", "/v1/audio/jobs/{id}"),
        ("GET", "/v1/audio/jobs/{id}/content"),
        ("GET", "/v1/audio/jobs/{id}/events"),
        ("POST", "/v1/audio/uploads"),
        ("GET", "/v1/models"),
        ("GET", "/v1/stats"),
    }


def test_the_examples_of_the_description_work(client: httpx2.Client) -> None:
    validator = pytest.importorskip("openapi_schema_validator").OAS30Validator
    document = client.get("/openapi.json").json()
    posted = 0
    for path, item in document["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        schema = {**content["schema"], "components": document["components"]}
        for example in content["examples"].values():
            validator(schema).validate(example["value"])
            answer = client.post(path, json=example["value"])
            assert answer.status_code in (200, 202), answer.text
            posted += 1
    assert posted >= 4


def test_answers_are_as_described(client: httpx2.Client) -> None:
    validator = pytest.importorskip("openapi_schema_validator").OAS30Validator
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["Generation"]["properties"]["variance"]["nullable"], "as the library has it"
    validator(schemas["Generation"]).validate(SONG | {"seed": None, "variance": 0.5, "n": 2})
    for wrong in ({}, SONG | {"duration": 0}, SONG | {"durration": 1}, SONG | {"variance": 2}):
        assert not validator(schemas["Generation"]).is_valid(wrong)
    validator(schemas["Job"]).validate(ended(client, submitted(client)))
    validator(schemas["Job"]).validate(ended(client, submitted(client, prompt="refuse")))
    validator(schemas["Error"]).validate(client.post("/v1/audio/jobs", json={}).json())


def test_the_documentation_comes_from_this_server(client: httpx2.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200 and "http" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    files = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
    assert len(files) == 3
    for name in files:
        assert client.get(f"/{name}").status_code == 200


@pytest.mark.browser
def test_the_documentation_asks_nobody_else(server: RunningServer) -> None:
    with browser() as chromium:
        tab = chromium.new_page()
        asked: list[str] = []
        said: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(f"{server.url}/docs")
        tab.get_by_text("Make songs and wait for them").first.click()
        tab.get_by_text("Execute").first.wait_for()
        assert [url for url in asked if not url.startswith((f"{server.url}/", "data:"))] == []
        assert not [text for text in said if "Content Security Policy" in text]
