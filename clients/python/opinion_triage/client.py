"""One connection a client, requests in batches, and patience where the service asks for it."""

import email.utils
import http.client
import json
import random
import socket
import time
import urllib.parse
import uuid

# Statuses that pass: too many requests, full or stopping.
_PASSING = (429, 503)
# Items in one request; the service's own limit is 256 unless it was changed.
_BATCH = 64


class Problem(Exception):
    """The service refused a request as a whole: `status`, stable `code`, and `detail` saying how to put it right."""

    def __init__(self, status, document):
        self.status = status
        self.code = document.get("code", "")
        self.document = document
        super().__init__(f"{status} {self.code}: {document.get('detail', '')}")


class ItemRefused(Exception):
    """One text could not be classified: stable `code`, and `detail` saying how to put it right."""

    def __init__(self, error):
        self.code = error["code"]
        self.error = error
        super().__init__(f"{error['code']}: {error['detail']}")


class Unreachable(Exception):
    """No answer from the service, after all attempts."""


class Client:
    """A client of one service. Not for several threads at once: give each its own.

    `key` is sent as a bearer token. `attempts` is how often a request is sent at most; between two of them the
    client waits as long as Retry-After says, else twice as long each time. `patience` bounds one wait, in seconds.
    `idempotent` lets the service keep its answers for a while, so that all attempts of a request get the same one.
    """

    def __init__(self, url="http://127.0.0.1:8080", key=None, timeout=30.0, attempts=5, patience=30.0, context=None,
                 idempotent=False):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address of a service; write one such as http://127.0.0.1:8080")
        if attempts < 1:
            raise ValueError("attempts must be at least 1")
        self._parts, self._timeout, self._context = parts, timeout, context
        self._attempts, self._patience, self._idempotent = attempts, patience, idempotent
        self._headers = {"accept": "application/json", "user-agent": "opinion-triage-client/0.1.0"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._connection = None
        self._sleep = time.sleep

    def classify(self, text, **options):
        """The result for one text. Raises ItemRefused when the text is refused. Options: see `classify_many`."""
        (result,) = self.classify_many([text], **options)
        if result["status"] != "ok":
            raise ItemRefused(result["error"])
        return result

    def classify_many(self, texts, include=(), deadline_ms=None, lane="interactive", batch=_BATCH):
        """One result per text, in order, each with `status` `ok` or `error`. Sends `batch` texts at a time.

        `include` may hold "evidence" (then batches are of 8 at most) and "logits"; `lane` "bulk" lets others go first.
        """
        texts = list(texts)
        if "evidence" in include:
            batch = min(batch, 8)
        results = []
        for begin in range(0, len(texts), batch):
            part = texts[begin : begin + batch]
            request = {"items": [{"id": str(begin + idx), "text": it} for idx, it in enumerate(part)], "lane": lane}
            if include:
                request["include"] = list(include)
            if deadline_ms is not None:
                request["deadline_ms"] = deadline_ms
            results.extend(self._call("POST", "/v1/classify", request)["results"])
        return results

    def model(self):
        """What the service runs: name, version, digest, manifest, metrics."""
        return self._call("GET", "/v1/model")

    def taxonomy(self):
        """What the labels mean, and how each type is handled."""
        return self._call("GET", "/v1/taxonomy")

    def is_ready(self):
        """Whether new items would be taken now. Asks once."""
        try:
            status, _, _ = self._send("GET", "/readyz", None)
        except OSError:
            return False
        except http.client.HTTPException:
            self.close()
            return False
        return status == 200

    def close(self):
        """Closes the connection; the next call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _call(self, method, path, request=None):
        """The reply's JSON. A request is safe to send again: it changes nothing."""
        body = None if request is None else json.dumps(request, ensure_ascii=False).encode()
        more = {"idempotency-key": str(uuid.uuid4())} if self._idempotent and body is not None else {}
        for attempt in range(1, self._attempts + 1):
            is_last = attempt == self._attempts
            try:
                status, headers, reply = self._send(method, path, body, more)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if is_last:
                    raise Unreachable(f"no answer from {self._parts.netloc} in {attempt} attempts: {error}") from error
                self._sleep(self._wait(attempt, None))
                continue
            if status == 200:
                return json.loads(reply)
            if status not in _PASSING or is_last:
                raise Problem(status, _document(reply))
            self._sleep(self._wait(attempt, headers.get("retry-after")))
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, attempt, retry_after):
        """Seconds until the next attempt."""
        asked = _seconds(retry_after)
        # Spread out, so that many callers refused at once do not all come back at once.
        own = 0.25 * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
        return min(self._patience, own if asked is None else asked + random.uniform(0.0, 0.25))

    def _send(self, method, path, body, more=()):
        if self._connection is None:
            self._connection = self._connect()
        headers = {**self._headers, **dict(more)}
        if body is not None:
            headers["content-type"] = "application/json"
        self._connection.request(method, self._parts.path.rstrip("/") + path, body, headers)
        reply = self._connection.getresponse()
        content = reply.read()
        if reply.will_close:
            self.close()
        return reply.status, reply.headers, content

    def _connect(self):
        host, port = self._parts.hostname, self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._context)
        connection = http.client.HTTPConnection(host, port, timeout=self._timeout)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _document(reply):
    try:
        document = json.loads(reply)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _seconds(retry_after):
    """Retry-After in seconds: a number or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
