"""The process that serves: load, compare, warm up, then open the port; stop without losing an answer."""

import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from minionerec.config import ServeConfig
from minionerec.errors import ConfigError
from minionerec.serve.app import Application, create_app
from minionerec.serve.protocol import Protocol
from minionerec.serve.served import ServedModel

IDLE_SECONDS = 30  # that a connection may be kept open between calls
MOST_CONNECTIONS = 4096  # beyond this many, calls get status 503 at once


class Server(uvicorn.Server):
    """A server that ends with status 0 when it is told to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking calls, answer those that have arrived, end. A second interrupt ends at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self._app.state.service.draining = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End within `serve.drain_s` seconds: refuse calls whose bodies have not arrived, and answer the others."""
        self._app.stop()
        await super().shutdown(sockets)

    @property
    def _app(self) -> Application:
        app = self.config.app
        assert isinstance(app, Application)
        return app


def serve(
    folder: Path, settings: ServeConfig, stage: str | None = None, device: str | None = None, dtype: str | None = None
) -> None:
    """Serve the model of a run until the process is told to stop.

    `Recommender.load` describes `stage`, `device`, `dtype` and errors.

    Raises:
        ConfigError: the port cannot be had.
        ArtifactError: the model does not make the lists of its evaluation.
    """
    bound = bind(settings)  # not yet open: whoever connects now is refused
    try:
        model = ServedModel.load(folder, settings, stage, device, dtype)
        model.check()
        model.warm_up(settings)
        run(create_app(model, settings), bound, settings)
    finally:
        bound.close()


def run(app: Application, bound: socket.socket, settings: ServeConfig) -> None:
    """Serve an application at a bound socket until the process is told to stop.

    If a thread still computes or loads after that, this ends the process, with status 0: Python would stop the thread in the
    middle of torch's code, which aborts the process.
    """
    _log_to_the_screen()
    _allow_connections()
    facts, (host, port) = app.state.service.model.facts, bound.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    name = f"{facts['run']} ({facts['stage']}, {facts['items']:,} items)"
    if settings.open:
        print(
            "WARNING: serve.open is true and there is no authentication: whoever reaches this address may ask. "
            "Put a proxy with authentication and TLS in front.",
            file=sys.stderr,
        )
    print(f"{name} answers at {address}: the page at /, lists at /v1/recommend, counters at /metrics. Ctrl+C stops it.")
    sys.stdout.flush()
    gc.freeze()  # what is there now stays: no call waits while it is looked through for garbage
    gc.enable()
    Server(configure(app, settings)).run(sockets=[bound])
    if app.state.service.at_work:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def configure(app: Application, settings: ServeConfig) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        app,
        loop="auto",  # uvloop if it is there
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=settings.drain_s + 1,  # until then the service itself has refused what is left
        limit_concurrency=MOST_CONNECTIONS,
    )


def bind(settings: ServeConfig) -> socket.socket:
    """A socket at the address of the settings.

    Raises:
        ConfigError: it is taken, or it is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ConfigError(
            f"serve.host {settings.host}, serve.port {settings.port}: cannot be had ({error.strerror}). Choose another port, 0 "
            "for a free one."
        ) from None
    return bound


def _allow_connections() -> None:
    """Let this process have as many open connections as the system allows it; many systems begin with 1,024."""
    if sys.platform == "win32":
        return
    import resource

    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST_CONNECTIONS
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(low, wanted if high == resource.RLIM_INFINITY else min(high, wanted)), high)
    )


def _log_to_the_screen() -> None:
    # What no line of ours shows need not be looked up for each (Python's logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("minionerec.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
