"""A server of S3's protocol on this machine, which can be made to fail like a real one."""

import re
import threading
from functools import cached_property

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

SLOW_DOWN = (
    "503 Slow Down",
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
)
EXPIRED = (
    "400 Bad Request",
    b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>",
)


class ObjectStore:
    """Its bucket is `bucket`.

    Attributes:
        requests: method and path of each one.
        fail: given the number of a request, an answer to give instead, or None.
    """

    def __init__(self):
        self.requests = []
        self.fail = lambda number: None
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environment, start_response):
        query = environment.get("QUERY_STRING", "")
        self.requests.append(f"{environment['REQUEST_METHOD']} {environment['PATH_INFO']}?{query}")
        failure = self.fail(len(self.requests))
        if failure is None:
            return self._application(environment, start_response)
        length = int(environment.get("CONTENT_LENGTH") or 0)
        environment["wsgi.input"].read(length)
        status, body = failure
        start_response(status, [("Content-Type", "application/xml")])
        return [body]

    def environment(self):
        """For clients."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @cached_property
    def client(self):
        return boto3.client("s3", endpoint_url=self.url)

    def put_small_files(self, prefix, count):
        """So many, faster than over the wire."""
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for number in range(count):
            backend.put_object("bucket", f"{prefix}/{number:08d}.png", b"x" * (number % 7))

    def lists(self):
        return [each for each in self.requests if re.match(r"GET /bucket/?\?.*list-type", each)]

    def end(self):
        self._server.shutdown()
        self._thread.join()
