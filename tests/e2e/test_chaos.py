"""The Hub, the relay, the proxy and the site are killed in turn while a kernel of a real JupyterLab counts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from demoworld import leftovers, logs

from moorage.demo.chaos import _kill, _kill_relay
from moorage.demo.files import lay_out
from moorage.demo.running import Demo, demonstration, end_orphans
from moorage.demo.witnesses import Witness, witnesses

pytest.importorskip("jupyterlab")
pytestmark = pytest.mark.xdist_group("browser")  # one demonstration at a time is enough for a machine


def harm(demo: Demo, what: str) -> str:
    return _kill_relay(demo.layout.directory) if what == "relay" else _kill(demo.children[what], "killed")


async def test_a_kernel_counts_on_whatever_is_killed(tmp_path: Path) -> None:
    """
    The same kernel goes on each time; the end of the Hub cuts no connection. Nothing is left afterwards, also of a job
    that the site had from the process before.
    """
    layout = lay_out(tmp_path / "demo")
    both = {"juwels", "uni"}
    cut_by = {"hub": set[str](), "relay": both, "proxy": both, "juwels": {"juwels"}, "slurm": {"uni"}}
    async with (
        demonstration(layout, lambda _text: None) as demo,
        witnesses(layout, lambda _text: None, [("juwels", "login"), ("uni", "batch")]) as seen,
    ):
        assert all(witness.count > 0 for witness in seen.them), logs(layout.directory)
        for what, cut in cut_by.items():
            before = {witness.system: (witness.count, witness.cuts) for witness in seen.them}
            began = time.monotonic()
            harm(demo, what)
            told = await seen.tell(began)
            assert "counts on where it was" in told, told
            for witness in seen.them:
                count, cuts = before[witness.system]
                assert witness.count > count
                assert (witness.cuts > cuts) is (witness.system in cut), f"{what}: {told}"
    assert leftovers(layout.directory) == []


def test_orphans_of_a_site_are_ended_and_nobody_elses_shell(tmp_path: Path) -> None:
    site = tmp_path / "sites" / "juwels"
    site.mkdir(parents=True)
    lab = subprocess.Popen(["sleep", "60"], cwd=site, env={**os.environ, "MOORAGE_TAG": "m1"})
    script = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / "sites")], cwd=site)
    shell = subprocess.Popen(["sleep", "60"], cwd=site)
    elsewhere = subprocess.Popen(["sleep", "60"], cwd=tmp_path, env={**os.environ, "MOORAGE_TAG": "m1"})
    try:
        end_orphans(tmp_path / "sites")
        assert (lab.wait(5), script.wait(5)) == (-signal.SIGKILL, -signal.SIGKILL)
        assert (shell.poll(), elsewhere.poll()) == (None, None)
    finally:
        for process in (lab, script, shell, elsewhere):
            process.kill()
            process.wait()


def test_a_kernel_that_begins_anew_is_noticed(tmp_path: Path) -> None:
    """Otherwise the test above would prove nothing."""
    witness = Witness(lay_out(tmp_path / "demo"), None, "juwels", "login")  # type: ignore[arg-type]
    for count in (1, 2, 3):
        witness.counted(count, 0.0)
    assert not witness.forgot
    witness.counted(1, 0.0)
    assert witness.forgot
