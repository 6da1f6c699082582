"""The tests of the example, as a reader of it runs them."""

from examples.fastapi_service.test_app import *  # noqa: F403
