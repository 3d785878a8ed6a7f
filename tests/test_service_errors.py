"""What the server answers with: one shape, the right status, nothing of the server's insides; alive after pickling."""

from __future__ import annotations

import json
import pickle

import pytest

from acestep.errors import InvalidRequestError
from acestep.problems import Problem
from acestep.request import GenerationRequest
from pipelines.errors import StorageError
from serve import errors
from serve.errors import (
    InternalError,
    QueueFullError,
    ServiceError,
    UnauthorizedError,
    UnprocessableError,
    service_error,
)

ANSWERS = {
    "UnprocessableError": (422, "invalid_request_error", "invalid_value"),
    "MalformedError": (400, "invalid_request_error", "malformed_request"),
    "UnauthorizedError": (401, "authentication_error", "invalid_api_key"),
    "ForbiddenError": (403, "permission_error", "forbidden"),
    "NotFoundError": (404, "not_found_error", "not_found"),
    "ConflictError": (409, "conflict_error", "conflict"),
    "TooLargeError": (413, "invalid_request_error", "too_large"),
    "RateLimitError": (429, "rate_limit_error", "rate_limit_exceeded"),
    "QueueFullError": (429, "rate_limit_error", "queue_full"),
    "WarmingUpError": (503, "server_error", "warming_up"),
    "DeadlineError": (504, "timeout_error", "deadline_exceeded"),
    "InternalError": (500, "server_error", "internal_error"),
}


def test_every_error_is_in_the_table() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, ServiceError)}
    assert kinds - {"ServiceError"} == set(ANSWERS)


@pytest.mark.parametrize("name", ANSWERS)
def test_each_has_its_status_and_one_shape(name: str) -> None:
    status, type, code = ANSWERS[name]
    error = getattr(errors, name)("so it is", param="seed")
    assert error.status == status
    about = {"message": "so it is", "type": type, "param": "seed", "code": code, "problems": []}
    assert json.loads(json.dumps(error.body())) == {"error": about}


@pytest.mark.parametrize("name", ANSWERS)
def test_errors_travel_between_processes(name: str) -> None:
    problem = Problem("seed", -1, "no")
    error = getattr(errors, name)("so", code="mine", param="seed", retry_after=2.5, problems=[problem])
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.body(), copy.headers(), str(copy)) == (error.body(), error.headers(), "so")
    assert copy.problems == (problem,)


def test_all_problems_of_a_request_are_told() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        GenerationRequest.parse({"prompt": "x", "duration": 1000, "schedule": "heun"})
    error = service_error(caught.value)
    assert isinstance(error, UnprocessableError)
    body = error.body()["error"]
    assert body["param"] == "duration"
    assert [problem["param"] for problem in body["problems"]] == ["duration", "schedule"]
    assert "did you mean 'scheduler'?" in body["problems"][1]["message"]
    assert body["problems"][0]["message"] in body["message"]


def test_a_fault_of_the_server_tells_the_client_nothing() -> None:
    for fault in (StorageError("cannot write s3://secret/key"), RuntimeError("token=abc"), KeyError("/root/x")):
        error = service_error(fault)
        assert isinstance(error, InternalError)
        assert "s3://" not in str(error.body()) and "abc" not in str(error.body()) and "root" not in str(error.body())


def test_an_answer_stays_itself() -> None:
    error = QueueFullError("full", retry_after=3)
    assert service_error(error) is error


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (3.0, "3"), (3.01, "4"), (59.999, "60")])
def test_waiting_is_told_in_whole_seconds(seconds: float, header: str) -> None:
    assert QueueFullError("full", retry_after=seconds).headers() == {"Retry-After": header}


def test_who_is_not_known_learns_how_to_be() -> None:
    assert UnauthorizedError("who?").headers() == {"WWW-Authenticate": "Bearer"}
