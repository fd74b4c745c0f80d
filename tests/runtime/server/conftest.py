"""A server that listens, in a thread of this process."""

import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from galip_edge.commands.serve import listening
from runtime.server.app import create_app


@pytest.fixture(scope="session")
def serving():
    @contextmanager
    def serve(pipeline, options=None, port=0):
        app = create_app(pipeline, options)
        with listening("127.0.0.1", port) as listener:
            server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            while not server.started:
                time.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
            finally:
                server.should_exit = True
                thread.join()

    return serve
