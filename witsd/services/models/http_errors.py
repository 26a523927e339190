"""What an HTTP answer other than 200 means, and what the person who reads the error should do.

Pure: status, headers and body in, error out. No text from a server leaves here unbounded or with a
key in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC

import attrs

from witsd.services.models.answers import error_text
from witsd.services.models.keys import Secret, redact_key_like
from witsd.values.errors import ModelError

_EXCERPT_CHARS = 300
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
#: 429 that no waiting mends.
_SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


@attrs.frozen(kw_only=True)
class Server:
    """Who is spoken to, as errors name it. ``secret`` is what must not appear in them."""

    provider: str
    base_url: str
    secret: Secret | None = None

    def error(self, message: str, *, status: int | None = None, retryable: bool = False) -> ModelError:
        return ModelError(
            f"{self.provider}: {message}", provider=self.provider, status=status, retryable=retryable
        )

    def excerpt(self, text: str) -> str:
        """What a server said, fit to be shown: no key, no control characters, not long."""
        if self.secret is not None:
            text = self.secret.redact(text)
        # Cut only after the key is gone, so that no half of it stays.
        text = redact_key_like(_CONTROL.sub(" ", text[: 64 * _EXCERPT_CHARS])).strip()
        return text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + " […]"


@attrs.frozen(kw_only=True)
class Refusal:
    """A failed attempt: the error, how long the server asked to wait (None: it did not), and whether
    the same call may be tried again here and now (None: if the error is ``retryable``)."""

    error: ModelError
    retry_after_s: float | None = None
    retry: bool | None = None

    @property
    def worth_another(self) -> bool:
        return bool(self.error.data["retryable"]) if self.retry is None else self.retry


def refusal(
    server: Server, status: int, headers: Mapping[str, str], body: bytes, *, model: str, now_us: int
) -> Refusal:
    """The error for an answer that is no success."""
    said, code = error_text(body)
    said = server.excerpt(said)
    tail = f" It said: {said}" if said else ""
    wait = retry_after_s(headers.get("retry-after", ""), now_us)
    retryable = status in (408, 425, 429) or (status >= 500 and status not in (501, 505))
    key = f"the key from {server.secret.source}" if server.secret is not None else "a call without a key"
    match status:
        case 400 | 413 | 422:
            text = f"refused the request to {model!r} as wrong ({status}).{tail}"
        case 401:
            text = f"refused {key} (401): put a valid one there.{tail}"
        case 402:
            text = f"wants to be paid first (402): check the account.{tail}"
        case 403:
            text = f"does not let {key} use {model!r} (403): check what the account may do.{tail}"
        case 404:
            text = (
                f"knows no model {model!r}, or {server.base_url} is not its base_url (404): "
                f"`witsd model list` shows the models.{tail}"
            )
        case 429 if code in _SPENT:
            retryable = False
            text = f"has no quota left for {key} (429): check plan and billing.{tail}"
        case 429:
            pause = f" in {wait:.0f} s" if wait is not None else " later"
            text = f"gets too many requests (429): try again{pause}.{tail}"
        case _ if 300 <= status < 400:
            leads = server.excerpt(headers.get("location", "")) or "where it leads"
            text = (
                f"redirects {server.base_url} ({status}), which is not followed so that no key "
                f"goes astray: set base_url to {leads}"
            )
        case _ if status >= 500:
            text = f"is in trouble ({status}): try again later, or choose another model.{tail}"
        case _:
            text = f"answered with HTTP status {status}: check base_url ({server.base_url}).{tail}"
    return Refusal(error=server.error(text, status=status, retryable=retryable), retry_after_s=wait)


def retry_after_s(value: str, now_us: int) -> float | None:
    """``Retry-After`` (RFC 9110, 10.2.3) as seconds from now: a number of seconds or an HTTP date."""
    value = value.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    try:
        from email.utils import parsedate_to_datetime  # a megabyte, for who has to wait

        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now_us / 1_000_000)
