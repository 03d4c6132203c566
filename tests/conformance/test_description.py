"""Every engine says of itself what the router needs to know."""

from collections.abc import Callable

import pytest

from headrace.contract.errors import StartupError
from headrace.shard.engine import Engine


def test_the_description_is_complete(engine: Engine) -> None:
    description = engine.description
    assert description.engine
    assert description.architecture
    assert description.vocabulary_size > 200
    assert description.context_token_count == 512
    assert (description.block_size, description.block_count) == (4, 251)
    assert description.steps_in_flight >= 2
    assert description.end_of_sequence_token_ids == (2,)


def test_fields_are_paths_of_a_request(engine: Engine) -> None:
    fields = engine.description.supported_fields
    assert {"sampling.temperature", "sampling.seed", "stopping.max_new_token_count"} <= fields
    groups = ("adapter", "sampling", "stopping", "output", "constraint", "watermark")
    assert all(field.split(".")[0] in groups for field in fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_cuont": 7}, "'block_cuont'.*block_count"),
        ({"block_count": "many"}, "block_count: 'many' is not of type int"),
        ({"block_size": 1.5}, "block_size: 1.5 is not of type int"),
    ],
)
def test_wrong_options_are_named(create: Callable[..., Engine], options: dict[str, object], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        create(**options)


def test_options_may_be_text(create: Callable[..., Engine]) -> None:
    assert create(block_count="33").description.block_count == 33
