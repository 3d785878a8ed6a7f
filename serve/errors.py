"""What the server answers when a request cannot be served: a status, and one JSON shape for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from acestep.errors import ACEStepError, InvalidRequestError
from acestep.problems import Problem


class ServiceError(ACEStepError):
    """A request that is answered with an error. Each subclass is one HTTP status; it survives pickling.

    Args:
        message: for the client; it holds no path, address or secret of the server.
        code: one word for programs; None: that of the class.
        param: the field of the request that is at fault.
        retry_after: seconds after which the same request may do better.
        problems: every single thing that is wrong.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        problems: Sequence[Problem] = (),
    ):
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.retry_after = retry_after
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[Any, ...]:  # Ray sends exceptions between processes.
        return type(self), (self.message,), self.__dict__

    def body(self) -> dict[str, Any]:
        """The answer's JSON: `{"error": {message, type, param, code, problems: [{param, message}]}}`."""
        problems = [{"param": problem.field, "message": str(problem)} for problem in self.problems]
        about = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**about, "problems": problems}}

    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer: `Retry-After` in whole seconds, rounded up."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


class UnprocessableError(ServiceError):
    """422: fields that are not allowed."""

    status, type, code = 422, "invalid_request_error", "invalid_value"

    @classmethod
    def of(cls, error: InvalidRequestError) -> UnprocessableError:
        """All problems of a request; `param` is the first one's field."""
        param = error.problems[0].field if error.problems else None
        return cls(str(error), param=param, problems=error.problems)


class MalformedError(ServiceError):
    """400: a body or header that cannot be read at all."""

    status, type, code = 400, "invalid_request_error", "malformed_request"


class UnauthorizedError(ServiceError):
    """401: no key, or one that is not known."""

    status, type, code = 401, "authentication_error", "invalid_api_key"

    def headers(self) -> dict[str, str]:
        """With `WWW-Authenticate`, as a 401 must have."""
        return {**super().headers(), "WWW-Authenticate": "Bearer"}


class ForbiddenError(ServiceError):
    """403: a key that may not do this."""

    status, type, code = 403, "permission_error", "forbidden"


class NotFoundError(ServiceError):
    """404: nothing there, or nothing that this client may see."""

    status, type, code = 404, "not_found_error", "not_found"


class ConflictError(ServiceError):
    """409: it does not fit what is there, such as the same Idempotency-Key for another body."""

    status, type, code = 409, "conflict_error", "conflict"


class TooLargeError(ServiceError):
    """413: more bytes than are taken."""

    status, type, code = 413, "invalid_request_error", "too_large"


class RateLimitError(ServiceError):
    """429: more requests than this client may make."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class QueueFullError(RateLimitError):
    """429: as much is waiting as the server takes."""

    code = "queue_full"


class WarmingUpError(ServiceError):
    """503: no engine is ready yet."""

    status, type, code = 503, "server_error", "warming_up"


class DeadlineError(ServiceError):
    """504: the song was not made in the time that the request has."""

    status, type, code = 504, "timeout_error", "deadline_exceeded"


class InternalError(ServiceError):
    """500: a fault of the server; its log says more than the client is told."""


def service_error(error: BaseException) -> ServiceError:
    """What the client is told of any exception; only errors about its own request are told in detail."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, InvalidRequestError):
        return UnprocessableError.of(error)
    return InternalError("the server failed on this request; its log says why")
