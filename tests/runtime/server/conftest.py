"""A server that listens, in a thread of this process."""

import threading
from contextlib import contextmanager

import pytest
from waiting import wait_until

from galip_edge.commands.serve import listening, server_of
from runtime.server.models import ModelSource
from runtime.server.options import ServerOptions


@pytest.fixture(scope="session")
def serving():
    @contextmanager
    def serve(pipeline, options=None, port=0):
        models = {pipeline.manifest.name: ModelSource(pipeline.manifest, lambda: pipeline)}
        with listening("127.0.0.1", port) as listener:
            server = server_of(models, options or ServerOptions())
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            wait_until(lambda: server.started or not thread.is_alive())
            assert server.started
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
            finally:
                server.should_exit = True
                thread.join()

    return serve
