"""What docs/unicore-site.md shows is what the site understands."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from moorage.bootstrap import read_config
from moorage.simulator.servers.unicore import SiteConfig, Timing, catalogue, serve
from moorage.simulator.servers.unicore.config import from_data
from moorage.simulator.servers.unicore.faults import rule_from

PAGE = (Path(__file__).parents[4] / "docs" / "unicore-site.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_configurations_load() -> None:
    documents = [yaml.safe_load(block) for block in _blocks("yaml")]
    sites = [document for document in documents if "faults" not in document and "systems" not in document]
    dask, one, several = map(from_data, sites)
    assert [application.command for application in dask.sites[0].applications] == ["dask scheduler", "dask worker"]
    assert one.sites[0].timing == Timing.real()
    assert one.sites[0].users[0].queues == ("batch",)
    assert [site.name for site in several.sites] == ["FALCON", "HERON"]
    assert several.tls


def test_a_configuration_of_moorage_loads(tmp_path: Path) -> None:
    (block,) = (block for block in _blocks("yaml") if "systems:" in block)
    file = tmp_path / "moorage.yaml"
    file.write_text(block)
    config, _plugins = read_config(file)
    assert list(config.systems) == ["demo"]


def test_faults_load_and_the_table_has_them_all() -> None:
    (document,) = (document for block in _blocks("yaml") if "faults" in (document := yaml.safe_load(block)))
    assert len([rule_from(rule) for rule in document["faults"]]) == 4
    rows = dict(re.findall(r"^\| (F-U\d+(?:, F-U\d+)?) \|.*\|(.*)\|$", PAGE, re.MULTILINE))
    shown = {name: words for names, words in rows.items() for name in names.split(", ")}
    assert set(shown) == set(catalogue)
    for name, words in shown.items():
        if words.strip():
            assert words.strip().split(", ") == list(catalogue[name])
        else:
            assert len(catalogue[name]) == 1


async def test_the_example_with_pyunicore_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = (block for block in _blocks("python") if "pyunicore" in block)
    timing = Timing(directory_s=0, queue_s=0, listing_s=0.05)
    async with serve(SiteConfig(timing=timing)) as site:
        # The client asks every 6 s: a submission is done before it returns, so that it asks once.
        names: dict[str, Any] = {"url": site.url}
        await asyncio.to_thread(
            exec, example.replace("job.poll()", "__import__('time').sleep(0.5); job.cache_time = 0; job.poll()"), names
        )
    assert "hello" in capsys.readouterr().out


def test_a_virtual_job_of_the_page_is_json() -> None:
    (block,) = _blocks("json")
    assert set(json.loads(block)["Environment"]) == {"SIM_RUNTIME_S", "SIM_EXIT_CODE", "SIM_STDOUT"}
