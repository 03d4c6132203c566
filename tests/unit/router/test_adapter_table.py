import pytest

from headrace.contract.adapter import LoadedAdapter
from headrace.contract.errors import AdapterNotFound, DuplicateAdapter, InvalidRequest
from headrace.router.adapter_table import Adapter, AdapterStats, AdapterTable


def loaded(digest: str) -> LoadedAdapter:
    return LoadedAdapter(digest=digest, rank=8, size_bytes=1)


def load(table: AdapterTable, name: str, digest: str) -> None:
    record = table.begin(name, f"/{name}")
    table.note_loaded(record, loaded(digest))
    table.publish(record)


def test_a_name_stands_for_a_digest_while_it_is_loaded() -> None:
    table = AdapterTable()
    load(table, "poet", "d1")
    load(table, "a/b:c", "d2")
    assert table.adapters() == [
        Adapter(name="a/b:c", source="/a/b:c", rank=8),
        Adapter(name="poet", source="/poet", rank=8),
    ]
    with table.use("poet") as digest, table.use("") as none:
        assert (digest, none) == ("d1", "")
    assert not table.unwanted.is_set()
    table.close("poet")
    assert table.unwanted.is_set()
    assert table.wanted_digests == {"d2"}
    for take in (table.close, lambda name: table.use(name).__enter__()):
        with pytest.raises(AdapterNotFound, match="no adapter 'poet' is loaded"):
            take("poet")


def test_requests_keep_what_their_name_stood_for() -> None:
    table = AdapterTable()
    load(table, "poet", "d1")
    with table.use("poet") as old, table.use("poet"):
        table.close("poet")
        load(table, "poet", "d2")
        with table.use("poet") as new:
            assert (old, new) == ("d1", "d2")
        assert table.wanted_digests == {"d1", "d2"}
        assert not table.unwanted.is_set()
    assert table.unwanted.is_set()
    assert table.wanted_digests == {"d2"}


def test_a_reserved_name_is_taken_but_of_no_use() -> None:
    table = AdapterTable()
    record = table.begin("poet", "/poet")
    with pytest.raises(DuplicateAdapter):
        table.begin("poet", "/elsewhere")
    with pytest.raises(AdapterNotFound):
        table.close("poet")
    table.note_loaded(record, loaded("d1"))
    assert (table.adapters(), table.records, table.wanted_digests) == ([], (), {"d1"})
    table.give_up(record)
    assert (table.wanted_digests, table.unwanted.is_set()) == (set(), True)
    load(table, "poet", "d2")
    with pytest.raises(DuplicateAdapter):
        table.begin("poet", "/poet")


def test_the_first_engine_decides_what_an_adapter_is() -> None:
    table = AdapterTable({"poet": "/poet"})
    [record] = table.records
    assert (record.order.source, record.order.digest, table.adapters()) == ("/poet", "", [])
    with pytest.raises(AdapterNotFound):
        table.close("poet")
    table.note_loaded(record, loaded("d1"))
    table.note_loaded(record, loaded("d2"))
    assert record.order.digest == "d1"


def test_comings_and_goings_are_counted() -> None:
    table = AdapterTable({"first": "/first"})
    table.note_loaded(table.records[0], loaded("d1"))
    load(table, "second", "d2")
    table.give_up(table.begin("third", "/third"))
    table.close("first")
    assert table.stats() == AdapterStats(adapter_count=1, load_count=2, failed_load_count=1, unload_count=1)


@pytest.mark.parametrize("name", ["", "a b", "a" * 129, "ä", "a\n", 'a"'])
def test_a_name_has_only_so_many_forms(name: str) -> None:
    with pytest.raises(InvalidRequest, match="name: must be 1 to 128 letters"):
        AdapterTable().begin(name, "/x")
    with pytest.raises(InvalidRequest):
        AdapterTable({name: "/x"})


def test_a_source_is_needed() -> None:
    with pytest.raises(InvalidRequest, match="source: must name a PEFT folder"):
        AdapterTable().begin("poet", "")
