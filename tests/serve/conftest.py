"""One tiny model for all tests of the service.

The libraries of a service are imported where they are used: this folder has fast tests.
"""

import asyncio
import contextlib

import pytest

from minionerec.config import ServeConfig
from tests.recommend.conftest import make, recommender  # noqa: F401, fixtures

URL = "http://127.0.0.1"


@contextlib.asynccontextmanager
async def running(app):
    """A client of an application whose worker runs."""
    import httpx

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            yield client


class Client:
    """Calls of an application, each in an event loop of its own, or several in one."""

    def __init__(self, app):
        self.app = app

    def __call__(self, method, path, **options):
        [response] = self.together((method, path, options))
        return response

    def together(self, *calls):
        async def answer():
            async with running(self.app) as client:
                return await asyncio.gather(*(client.request(method, path, **options) for method, path, options in calls))

        return asyncio.run(answer())


@pytest.fixture
def client(recommender):  # noqa: F811
    """A function that asks a fresh service; its arguments are a method, a path, and options of httpx."""
    from minionerec.serve.app import create_app

    return lambda *call, **options: Client(create_app(recommender))(*call, **options)


@pytest.fixture
def ask(recommender):  # noqa: F811
    """A function that sends requests to `/v1/recommend` in one call; `settings` are fields of `serve`."""

    from minionerec.serve.app import create_app

    def ask(*requests, settings=None, model=recommender, **options):
        app = create_app(model, ServeConfig(**(settings or {})))
        return Client(app)("POST", "/v1/recommend", json={"requests": list(requests)}, **options)

    return ask
