"""The client and the server each state some values, because neither imports the other. The values are equal."""

from __future__ import annotations

from carousel import _answers, _ports
from carousel.cli import connection
from service.api import request_ids, status, vectors
from service.settings import Settings


def test_the_command_calls_the_port_on_which_a_server_listens_by_default() -> None:
    assert f"localhost:{Settings.model_fields['port'].default}" == connection.TARGET


def test_the_client_looks_for_an_error_where_the_server_puts_it() -> None:
    assert _answers.ERROR_KEY == status.METADATA_KEY
    assert _answers.REQUEST_ID_KEY == request_ids.KEY


def test_the_client_sends_the_whole_numbers_that_the_server_accepts_in_vectors() -> None:
    assert _ports.LARGEST_WHOLE == vectors.LARGEST_WHOLE
