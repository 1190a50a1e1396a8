"""What a person does and sees, with a real Hub, a real proxy, a real browser and a real JupyterLab."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupyterhub
import pytest
from demoworld import Demo, Visit, accessible, shot  # type: ignore[import-not-found]

# One demonstration serves all of them, so they run in one process.
pytestmark = pytest.mark.xdist_group("browser")

NEW = "#moorage-new-name"


def new_session(page: Any, name: str) -> None:
    page.fill(NEW, name)
    page.click("#moorage-new button")
    page.wait_for_selector("#moorage-service")


def row(page: Any, server: str) -> Any:
    return page.locator(f'tr[data-server="{server}"]')


def wait_for_state(page: Any, server: str, state: str, seconds: float = 60) -> None:
    page.wait_for_selector(f'tr[data-server="{server}"][data-state="{state}"]', timeout=seconds * 1000)


def start_by_api(demo: Demo, user: str, server: str, **options: Any) -> None:
    # JupyterHub 5 takes the options alone.
    body = {"user_options": options, "display_name": server} if jupyterhub.version_info[0] > 5 else options
    demo.hub_api("POST", f"users/{user}/servers/{server}", body)


def wait_for_server(demo: Demo, user: str, server: str, seconds: float = 90) -> None:
    """Until the Hub calls the server ready."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        servers = next(each for each in demo.hub_api("GET", "users") if each["name"] == user)["servers"]
        if servers.get(server, {}).get("ready"):
            return
        time.sleep(0.2)
    raise AssertionError(f"{server} of {user} is not ready; its Hub says {servers.get(server)}")


def stop_by_api(demo: Demo, user: str, server: str) -> None:
    demo.hub_api("DELETE", f"users/{user}/servers/{server}")


def test_form_start_progress_lab_and_a_cell(demo: Demo, visit: Visit) -> None:
    """
    From the login to a number that a kernel on the simulated system has computed, and to the end of it.

    This one runs with both versions of JupyterHub; see tests/run.sh.
    """
    page = visit()
    shot(page, "home-empty")
    new_session(page, "First steps")
    assert page.url.endswith("/hub/spawn/alice/first-steps?display_name=First%20steps")
    page.select_option("#moorage-system", "juwels")
    page.select_option("#moorage-partition", "devel")
    page.fill("#moorage-walltime_s", "45")
    shot(page, "form")
    accessible(page)
    page.click("#moorage-start")
    page.wait_for_selector("#progress-log li")
    shot(page, "progress")
    accessible(page)
    page.reload()
    page.wait_for_selector("#progress-log li, .jp-LauncherCard", timeout=60_000)
    page.wait_for_url("**/user/alice/first-steps/lab**", timeout=90_000)
    page.wait_for_selector(".jp-LauncherCard[title*='Python']", timeout=60_000)
    compute(page, "print(6 * 7)", "42")
    shot(page, "lab")
    home = page.context.new_page()
    home.goto(f"{demo.url}/hub/home")
    wait_for_state(home, "first-steps", "ready")
    assert "juwels / devel" in row(home, "first-steps").inner_text()
    assert re.search(r"4\d min", row(home, "first-steps").inner_text())
    shot(home, "home")
    accessible(home)
    home.on("dialog", lambda dialog: dialog.accept())
    row(home, "first-steps").get_by_role("button", name=re.compile("^Stop")).click()
    wait_for_state(home, "first-steps", "ended")


def compute(page: Any, code: str, expected: str) -> None:
    """Run one cell in a new notebook of the lab that the page shows."""
    from playwright.sync_api import TimeoutError as Late

    page.click(".jp-LauncherCard[title*='Python']")
    editor = page.locator(".jp-Notebook .jp-Cell .cm-content").first
    editor.wait_for(timeout=60_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=60_000)
    # The lab draws its cells anew once the kernel is known: what was typed or run before is gone then, so once more.
    for _ in range(6):
        editor.click()
        page.keyboard.press("Control+A")
        page.keyboard.type(code)
        page.keyboard.press("Control+Enter")
        with contextlib.suppress(Late):
            page.wait_for_selector(f".jp-OutputArea-output:has-text('{expected}')", timeout=15_000)
            return
    shot(page, "cell-without-output")
    pytest.fail(f"no cell says {expected}")


@pytest.fixture(scope="module")
def steady(demo: Demo) -> Iterator[str]:
    """A session of alice that is ready and stays."""
    start_by_api(demo, "alice", "steady", system="juwels", partition="login")
    wait_for_server(demo, "alice", "steady")
    yield "steady"
    stop_by_api(demo, "alice", "steady")


COUNTER = """async (base) => {
    const xsrf = document.cookie.match(/_xsrf=([^;]+)/)?.[1] ?? "";
    const answer = await fetch(base + "api/kernels", {method: "POST", headers: {"X-XSRFToken": xsrf}, body: "{}"});
    const kernel = await answer.json();
    const socket = new WebSocket(base.replace("http", "ws") + `api/kernels/${kernel.id}/channels`);
    const count = window.count = {closed: false, seen: [], ask: (code) => socket.send(JSON.stringify({
        header: {msg_id: crypto.randomUUID(), msg_type: "execute_request", version: "5.3", username: "", session: "s"},
        parent_header: {}, metadata: {}, channel: "shell",
        content: {code, silent: false, store_history: false, user_expressions: {}, allow_stdin: false},
    }))};
    socket.onclose = () => { count.closed = true; };
    socket.onmessage = (event) => {
        const message = JSON.parse(event.data);
        if (message.msg_type === "stream") count.seen.push(message.content.text.trim());
    };
    await new Promise((resolve) => { socket.onopen = resolve; });
    count.ask("x = 40");
}"""


def test_a_kernel_counts_on_while_the_hub_is_killed(demo: Demo, visit: Visit, steady: str) -> None:
    """kill -9 of the Hub: the WebSocket stays, the kernel keeps its state, no job is started, the page lives again."""
    page = visit()
    wait_for_state(page, steady, "ready")
    lab = page.context.new_page()
    lab.goto(f"{demo.url}/user/alice/{steady}/lab")
    lab.wait_for_selector(".jp-Launcher, .jp-Notebook", timeout=60_000)
    jobs = submitted(demo)
    lab.evaluate(COUNTER, f"{demo.url}/user/alice/{steady}/")
    os.kill(demo.hub_pid(), signal.SIGKILL)
    lab.evaluate("window.count.ask('x += 1; print(x)')")
    lab.wait_for_function("window.count.seen.includes('41')", timeout=15_000)
    demo.wait_for_hub()
    wait_for_server(demo, "alice", steady, 30)
    lab.evaluate("window.count.ask('x += 1; print(x)')")
    lab.wait_for_function("window.count.seen.includes('42')", timeout=15_000)
    assert lab.evaluate("window.count.closed") is False
    wait_for_state(page, steady, "ready", 30)
    row(page, steady).get_by_role("button", name="Open").wait_for(timeout=30_000)
    assert submitted(demo) == jobs
    shot(page, "home-after-a-restart")


def submitted(demo: Demo) -> list[str]:
    return sorted(str(path) for path in demo.directory.glob("sites/*/*/UNICORE_Jobs/*/*"))


def test_a_session_in_the_queue_can_be_cancelled(demo: Demo, visit: Visit) -> None:
    """Both nodes are taken, so the job waits; cancelling is honest: afterwards there is no job."""
    page = visit()
    new_session(page, "Waits")
    page.select_option("#moorage-system", "juwels")
    page.select_option("#moorage-partition", "gpus")
    block = hold_all_nodes(demo)
    try:
        page.click("#moorage-start")
        page.wait_for_selector("#progress-log li")
        page.wait_for_function("document.getElementById('progress-message').textContent.includes('queue')")
        shot(page, "progress-queued")
        page.click("#moorage-cancel")
        page.wait_for_url("**/hub/home")
        wait_for_state(page, "waits", "ended")
        assert "stopped" in row(page, "waits").inner_text()
    finally:
        block()


def hold_all_nodes(demo: Demo) -> Any:
    start_by_api(demo, "admin", "holder", system="juwels", partition="gpus", nodes=2)
    wait_for_server(demo, "admin", "holder")
    return lambda: stop_by_api(demo, "admin", "holder")


def test_a_failing_start_says_why(demo: Demo, visit: Visit) -> None:
    """Cause, advice, and the end of the log behind a summary; then the history of the session."""
    page = visit()
    new_session(page, "Broken")
    page.select_option("#moorage-service", "broken")
    page.click("#moorage-start")
    page.wait_for_selector("#moorage-failure", timeout=60_000)
    text = page.inner_text("#moorage-failure")
    assert "The job failed" in text
    page.click("#moorage-failure summary")
    assert "no module named numpy" in page.inner_text("#moorage-failure pre")
    shot(page, "failed")
    accessible(page)
    page.goto(f"{demo.url}/hub/home")
    wait_for_state(page, "broken", "ended")
    row(page, "broken").get_by_role("link", name="Details").click()
    page.wait_for_selector("#session-steps tr")
    assert "numpy" in page.inner_text("#session-log")
    shot(page, "session")
    accessible(page)


def test_what_runs_is_told_inside_the_lab_and_on_its_page(demo: Demo, visit: Visit) -> None:
    """Twelve minutes: JupyterLab warns by itself, the table too, and the page shows what the lab says now."""
    start_by_api(demo, "alice", "short", system="uni", partition="devel", walltime_s=720)
    page = visit()
    wait_for_server(demo, "alice", "short")
    page.wait_for_selector("#moorage-alerts:has-text('short ends in')")
    lab = page.context.new_page()
    lab.goto(f"{demo.url}/user/alice/short/lab")
    lab.wait_for_selector("text=save your work", timeout=60_000)
    shot(lab, "lab-warns")
    row(page, "short").get_by_role("link", name="Details").click()
    page.wait_for_selector("#session-log:has-text('ServerApp')", timeout=60_000)
    shot(page, "session-running")
    accessible(page)
    stop_by_api(demo, "alice", "short")


def test_the_load_of_a_partition_is_shown_with_its_age(demo: Demo, visit: Visit) -> None:
    page = visit()
    new_session(page, "Load")
    page.select_option("#moorage-system", "uni")
    page.wait_for_selector("#moorage-load:has-text('nodes free')")
    assert re.fullmatch(r"\d of \d nodes free, \d+ s ago", page.inner_text("#moorage-load"))
    shot(page, "form-load")
    accessible(page)


def test_ticks_are_kept_for_the_service_that_has_them(visit: Visit) -> None:
    """A service without kernels on the way does not untick those of the next one."""
    page = visit()
    new_session(page, "Ticks")
    page.select_option("#moorage-service", "broken")
    assert page.locator("input[name='kernels[]'][type=checkbox]").count() == 0
    page.select_option("#moorage-service", "jupyterlab-4")
    assert page.is_checked("#moorage-kernels-python")
    page.uncheck("#moorage-kernels-python")
    page.select_option("#moorage-service", "broken")
    page.select_option("#moorage-service", "jupyterlab-4")
    assert not page.is_checked("#moorage-kernels-python")


def test_fields_depend_on_those_before_them(demo: Demo, visit: Visit) -> None:
    """What is not there is not offered, what cannot be had says why, what changed is marked."""
    page = visit()
    new_session(page, "Choices")
    page.select_option("#moorage-system", "juwels")
    page.select_option("#moorage-partition", "gpus")
    page.wait_for_selector("#moorage-gpus")
    assert page.locator("#moorage-partition option[value='staff']").get_attribute("disabled") is not None
    assert "other groups" in page.locator("#moorage-partition option[value='staff']").inner_text()
    page.fill("#moorage-gpus", "9")
    assert "from 1 to 4" in page.inner_text("#moorage-gpus-problem")
    page.click("#moorage-start")
    assert "/hub/spawn/" in page.url
    assert page.evaluate("document.activeElement.id") == "moorage-gpus"
    page.select_option("#moorage-system", "jureca")
    assert page.locator("#moorage-gpus").count() == 0
    assert page.locator(".moorage-changed[data-field='partition']").count() == 1
    assert page.locator(".alert", has_text="Home directories are moved").count() == 1
    shot(page, "form-changed")
    page.select_option("#moorage-service", "jupyterlab-3")
    assert page.locator(".alert", has_text="This version is old").count() == 1


def test_presets_and_links_fill_in_and_start_nothing(demo: Demo, visit: Visit) -> None:
    page = visit()
    new_session(page, "Presets")
    page.select_option("#moorage-system", "jureca")
    page.select_option("#moorage-partition", "devel")
    page.click("details summary")
    page.fill("#moorage-preset-name", "Monday")
    page.click("text=Save")
    page.wait_for_selector("#moorage-preset option[value='Monday']", state="attached")
    page.select_option("#moorage-system", "juwels")
    page.select_option("#moorage-preset", "Monday")
    assert page.input_value("#moorage-system") == "jureca"
    page.goto(f"{demo.url}/hub/spawn/alice/linked?system=uni&partition=batch&walltime_s=1200")
    page.wait_for_selector("#moorage-system")
    assert page.input_value("#moorage-system") == "uni"
    assert page.input_value("#moorage-walltime_s") == "20"
    assert "nothing was started" in page.inner_text("#moorage-alerts")
    assert "linked" not in next(user for user in demo.hub_api("GET", "users") if user["name"] == "alice")["servers"]


def test_german_and_a_narrow_screen(demo: Demo, visit: Visit) -> None:
    page = visit(language="de-DE", width=390, height=800)
    assert page.inner_text("h1") == "Ihre Sitzungen"
    shot(page, "home-narrow-german")
    accessible(page)
    page.goto(f"{demo.url}/hub/spawn/alice/schmal")
    page.wait_for_selector("#moorage-service")
    assert "Rechenknoten" in page.inner_html("#moorage-partition")
    shot(page, "form-narrow-german")
    accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.goto(f"{demo.url}/hub/moorage/language/en")
    page.goto(f"{demo.url}/hub/home")
    assert page.inner_text("h1") == "Your sessions"


def test_dark_mode_is_the_hubs_own(visit: Visit) -> None:
    page = visit(color_scheme="dark")
    page.evaluate("document.documentElement.setAttribute('data-bs-theme', 'dark')")
    shot(page, "home-dark")
    accessible(page)


def test_administrators_see_everything_and_others_nothing(demo: Demo, visit: Visit) -> None:
    """Sessions of all, systems, actions with an audit log; a user gets 403 on the page, the stream and every action."""
    start_by_api(demo, "alice", "watched", system="jureca", partition="devel")
    page = visit("admin")
    page.goto(f"{demo.url}/hub/moorage/admin")
    page.wait_for_selector("#admin-systems tr[data-system='juwels']")
    page.wait_for_selector("#admin-sessions tr:has-text('watched')")
    shot(page, "admin")
    accessible(page)
    page.fill("#admin-search", "nobody of that name")
    assert page.locator("#admin-sessions tr:has-text('watched')").count() == 0
    page.fill("#admin-search", "")
    page.click("#admin-systems tr[data-system='uni'] button:has-text('Drain')")
    page.wait_for_selector("#admin-systems tr[data-system='uni'] .badge:has-text('drained')")
    page.click("#admin-systems tr[data-system='uni'] button:has-text('Take sessions again')")
    page.wait_for_selector("#admin-audit td:has-text('undrain')")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#admin-sessions tr", has_text="watched").get_by_role("button").click()
    page.wait_for_selector("#admin-sessions tr:has-text('watched')", state="detached", timeout=60_000)
    other = visit("alice")
    for path in ("moorage/admin", "moorage/api/admin/events"):
        assert other.request.get(f"{demo.url}/hub/{path}").status in (403, 404)
    answer = other.request.post(f"{demo.url}/hub/moorage/api/admin/actions/drain", data={"subject": "uni"})
    assert answer.status == 403


def test_nobody_reaches_what_is_somebody_elses(demo: Demo, visit: Visit) -> None:
    """With the other person's cookies on every path: the lab, its API, the WebSocket, the session's page, the form."""
    start_by_api(demo, "admin", "private", system="juwels", partition="login")
    page = visit("alice")
    admin = visit("admin")
    wait_for_state(admin, "private", "ready", 90)
    details = row(admin, "private").get_by_role("link", name="Details").get_attribute("href")
    for path in ("/user/admin/private/lab", "/user/admin/private/api/kernels", "/user/admin/private/api/contents"):
        answer = page.request.get(f"{demo.url}{path}")
        assert answer.status in (403, 404), path
    paths = [details, details.replace("/admin/", "/alice/"), "/hub/moorage/api/users/admin/presets"]
    paths += ["/hub/moorage/api/users/admin/events", "/hub/spawn/admin/private", "/hub/spawn-pending/admin/private"]
    for path in paths:
        assert page.request.get(f"{demo.url}{path}").status in (403, 404), path
    opened = page.evaluate(
        """(url) => new Promise((resolve) => {
            const socket = new WebSocket(url);
            socket.onopen = () => resolve(true);
            socket.onerror = () => resolve(false);
        })""",
        demo.url.replace("http", "ws") + "/user/admin/private/api/events/subscribe",
    )
    assert opened is False
    session = details.rsplit("/", 1)[1]
    answer = page.request.delete(f"{demo.url}/hub/moorage/api/users/admin/sessions/{session}")
    assert answer.status in (403, 404)
    stop_by_api(demo, "admin", "private")


def test_nothing_listens_beyond_this_machine(demo: Demo) -> None:
    """Every port of the demonstration's processes is one of 127.0.0.1."""
    listening = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            listening.add((fields[1].split(":")[0], fields[9]))
    inodes = {inode for pid in family(demo.process.pid) for inode in sockets_of(pid)}
    addresses = {address for address, inode in listening if inode in inodes}
    assert addresses <= {"0100007F"}


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def sockets_of(pid: int) -> list[str]:
    inodes = []
    try:
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            if target.startswith("socket:["):
                inodes.append(target[8:-1])
    except OSError:
        return inodes
    return inodes
