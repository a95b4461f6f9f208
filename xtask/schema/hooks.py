"""What schemathesis has to know about this API beyond its document."""

import itertools
import re

import schemathesis

REQUEST_ID = "x-blixard-request"
IDS = itertools.count(1)
# What these send may come at any time, or never.
STREAMS = ("/watch", "/logs")


def without_body(answer, *_args, **_kwargs):
    """Takes the head of an answer for all of it."""
    if answer.ok:
        answer._content = b""
        answer._content_consumed = True
        answer.close()


@schemathesis.hook
def before_call(_context, case, kwargs):
    if case.operation.path.endswith(STREAMS):
        kwargs["hooks"] = {"response": without_body}
    # An id belongs to one request. What is drawn is the same few again and again, and nearly all would be refused for that.
    headers = case.headers or {}
    if re.fullmatch("[0-9a-fA-F]{32}", str(headers.get(REQUEST_ID, ""))):
        headers[REQUEST_ID] = f"{next(IDS):032x}"


@schemathesis.hook
def filter_body(_context, body):
    """Leaves out ports that cannot both listen on one host, which a schema cannot say."""
    ports = body.get("publish") if isinstance(body, dict) else None
    if not isinstance(ports, list):
        return True
    hosts = [port.get("host_port") for port in ports if isinstance(port, dict)]
    return all(host not in hosts[:place] for place, host in enumerate(hosts))
