"""Cases 22 to 30: collections and their pages."""

from typing import Any

HELD = {"Executable": "true", "haveClientStageIn": "true"}


async def test_022_a_collection_lists_absolute_urls(api: Any) -> None:
    before = set((await api.document("/jobs"))["jobs"])
    made = {await api.submit(HELD) for _ in range(3)}
    document = await api.document("/jobs")
    assert set(document["jobs"]) - before == made
    assert document["_links"]["self"]["href"].endswith("offset=0&num=200")


async def test_023_the_first_page_has_a_next_one(api: Any, control: Any) -> None:
    for _ in range(3):
        await api.submit(HELD)
    document = await api.document("/jobs?num=2")
    assert len(document["jobs"]) == 2
    assert "previous" not in document["_links"]
    assert "offset=2" in document["_links"]["next"]["href"]
    rest = await api.document(document["_links"]["next"]["href"])
    assert len(set(rest["jobs"]) | set(document["jobs"])) == 3


async def test_024_the_last_page_has_a_previous_one(api: Any, control: Any) -> None:
    for _ in range(3):
        await api.submit(HELD)
    document = await api.document("/jobs?offset=2&num=2")
    assert len(document["jobs"]) == 1
    assert "next" not in document["_links"]
    assert "offset=0" in document["_links"]["previous"]["href"]


async def test_025_jobs_of_others_are_not_listed(api: Any, stranger: Any) -> None:
    job = await api.submit(HELD)
    assert job not in (await api.document("/jobs", by=stranger))["jobs"]


async def test_026_tags_are_looked_for_together(api: Any) -> None:
    both = await api.submit({**HELD, "Tags": ["case26a", "case26b"]})
    one = await api.submit({**HELD, "Tags": ["case26a"]})
    listed = {query: set((await api.document(f"/jobs?tags={query}"))["jobs"]) for query in QUERIES}
    assert listed["case26a"] == {both, one}
    for query in ("case26a,case26b", "case26a+case26b", "case26a%20case26b"):
        assert listed[query] == {both}
    assert listed["case26nope"] == set()


QUERIES = ("case26a", "case26a,case26b", "case26a+case26b", "case26a%20case26b", "case26nope")


async def test_027_a_part_of_a_tag_is_not_the_tag(api: Any) -> None:
    await api.submit({**HELD, "Tags": ["case27one"]})
    assert (await api.document("/jobs?tags=case27"))["jobs"] == []


async def test_028_a_negative_page_is_500(api: Any) -> None:
    reply = await api.get("/jobs?num=-1")
    assert reply.status == 500
    assert "must be positive" in reply.error


async def test_028_a_page_that_is_no_number_is_404(api: Any) -> None:
    reply = await api.get("/jobs?offset=x")
    assert (reply.status, reply.body) == (404, b"")


async def test_029_working_directories_are_listed_only_when_asked_for(api: Any) -> None:
    _, directory = await api.ready_directory()
    hidden = (await api.document("/storages"))["storages"]
    assert not any(url.endswith("-uspace") for url in hidden)
    assert directory in (await api.document("/storages?filter=all&num=1000"))["storages"]


async def test_030_fields_do_not_make_a_bulk_status(api: Any) -> None:
    await api.submit(HELD)
    assert await api.document("/jobs?fields=status") == await api.document("/jobs")
