"""What a service takes at most. Each limit is stated once: its name, its default, and what is said of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from fastshap import checks
from fastshap.errors import InvalidArgumentError


def _limit(default: float, said: str, answer: str = "") -> Any:
    """A field of :class:`Limits`; ``answer``: the status of a request that passes it."""
    return dataclasses.field(default=default, metadata={"help": said, "answer": answer})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a service. A whole number has to be 1 or more, a number of seconds more than 0."""

    max_body_bytes: int = _limit(1_048_576, "The most bytes of a request's body.", "413")
    max_instances: int = _limit(64, "The most instances (texts) of a request.", "413")
    max_text_tokens: int = _limit(2048, "The most tokens of a text, with its pair and its targets.", "413")
    max_targets: int = _limit(64, "The most targets that a request names for a text.", "422")
    max_samples: int = _limit(1000, "The most samples of a text: n_perturbations, and max_perturbations.", "422")
    max_new_tokens: int = _limit(64, "The most tokens that a language model writes where there is no target.", "422")
    max_queued_tokens: int = _limit(
        262_144, "The most tokens of rows (a text's tokens times its samples) that wait or run.", "429"
    )
    max_requests: int = _limit(512, "The most requests at work at a time.", "429")
    max_connections: int = _limit(1024, "The most connections open at a time.", "429")
    timeout: float = _limit(
        60.0, "Seconds for a request, if it does not ask for fewer by x-request-timeout-seconds.", "504"
    )
    body_timeout: float = _limit(10.0, "Seconds in which a request's body has to arrive.", "408")
    header_timeout: float = _limit(10.0, "Seconds in which a request's headers have to arrive.", "closed")
    grace: float = _limit(30.0, "Seconds to answer what was accepted, once the service is told to stop.", "503")

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if isinstance(one.default, int):
                checks.whole(value, one.name, least=1)
            elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InvalidArgumentError(f"{one.name} must be a number of seconds, more than 0; got {value!r}.")

    def check_samples(self, n_perturbations: int, max_perturbations: int | None) -> None:
        """Nothing, if a service with these settings keeps to ``max_samples``. What ``rtol`` may reach by default is capped.

        Raises:
            InvalidArgumentError: it does not.
        """
        for name, value in {"n_perturbations": n_perturbations, "max_perturbations": max_perturbations}.items():
            if value is not None and value > self.max_samples:
                option = f"--{name.replace('_', '-')}"
                raise InvalidArgumentError(
                    f"{name} is {value} and max_samples is {self.max_samples}; lower the one ({option}) or raise the other "
                    "(--max-samples)."
                )
