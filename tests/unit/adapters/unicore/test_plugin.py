"""The kinds come in through the door of all plugins; their configuration is read and checked like everybody's."""

from pathlib import Path

import attrs
import pytest

from moorage.adapters.unicore import plugin
from moorage.adapters.unicore.config import BasicLogin, OwnerToken, UnicoreConfig
from moorage.config import Config, ConfigError, Kinds, SecretRef, load, unsupported
from moorage.core.model import SystemName

URL = "https://gateway.example.org:8080/DEMO-SITE/rest/core"
KINDS = Kinds({"unicore": UnicoreConfig}, {"unicore": UnicoreConfig})


def read(tmp_path: Path, options: str) -> Config:
    file = tmp_path / "moorage.yaml"
    file.write_text(f"deployment: d\nsystems:\n  juniper:\n    kind: unicore\n    options: {{{options}}}\n")
    return load(file, lambda allowed: KINDS)


def options_of(config: Config) -> UnicoreConfig:
    options = config.systems[SystemName("juniper")].options
    assert isinstance(options, UnicoreConfig)
    return options


def test_kinds() -> None:
    assert [kind.name for kind in plugin.moorage_system_kinds()] == ["unicore"]
    assert [kind.name for kind in plugin.moorage_tunnel_kinds()] == ["unicore"]
    assert unsupported(UnicoreConfig) == ""


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    page = Path(__file__).parents[4] / "docs" / "unicore.md"
    file = tmp_path / "moorage.yaml"
    file.write_text(page.read_text().split("```yaml\n", 1)[1].split("```", 1)[0])
    options = options_of(load(file, lambda allowed: KINDS))
    assert options.login_nodes == {"login": "login*"}


def test_the_documentation_names_every_option() -> None:
    page = (Path(__file__).parents[4] / "docs" / "unicore.md").read_text()
    missing = [each.name for each in attrs.fields(UnicoreConfig) if f"`{each.name}" not in page]
    assert missing == []


def test_a_site_needs_no_more_than_its_address(tmp_path: Path) -> None:
    options = options_of(read(tmp_path, f"url: '{URL}'"))
    assert (options.url, options.credentials, options.insecure) == (URL, OwnerToken(), False)


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    options = options_of(
        read(
            tmp_path,
            f"url: '{URL}', aliases: ['https://other/S/rest/core'], ca_file: /etc/ca.pem, "
            "credentials: {kind: basic, username: hub, password: {file: /run/secrets/site}}, "
            "accounts: {alice: proj1}, role: user, group: hpc, login_nodes: {login: 'login*'}, "
            "resources: {gpus: GPUS}, directives_fixed: true, umask: '0027', "
            "notify_url: 'https://hub/hub/told', connections: 64, stuck_after: 10 min, forward_from: login1",
        )
    )
    assert options.credentials == BasicLogin(kind="basic", username="hub", password=SecretRef(file="/run/secrets/site"))
    assert (options.login_nodes, options.resources) == ({"login": "login*"}, {"gpus": "GPUS"})
    assert options.stuck_after == 600


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ("url: 'https://g/S/rest'", "url"),
        ("url: 'ftp://g/S/rest/core'", "url"),
        ("url: 'https://user:pw@g/S/rest/core'", "url"),
        ("url: 'https://g/S/rest/core?x'", "url"),
        ("url: 'https://g\\n/S/rest/core'", "url"),
        (f"url: '{URL}', credentials: {{kind: basic, username: a, password: literal}}", "password"),
        (f"url: '{URL}', credentials: {{kind: other}}", "kind"),
        (f"url: '{URL}', connections: 1", "connections"),
        (f"url: '{URL}', umask: '999'", "umask"),
        (f"url: '{URL}', accounts: {{alice: 'a,role:admin'}}", "alice"),
        (f"url: '{URL}', resources: {{tea: X}}", "resources"),
        (f"url: '{URL}', insecure: true, ca_file: /etc/ca.pem", "insecure"),
        ("connections: 8", "url"),
    ],
)
def test_mistakes_are_told_with_their_key(tmp_path: Path, options: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, options)
    assert key in str(caught.value)
    assert 'literal"' not in str(caught.value)
