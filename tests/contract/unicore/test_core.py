"""Cases 1 to 21: the base document, authentication, security sessions, preferences, tokens."""

import re
from typing import Any

import jwt
import pytest
from cryptography import x509

SESSION = "X-UNICORE-SecuritySession"
LIFETIME = "X-UNICORE-SecuritySession-Lifetime"
LINKS = "jobs sites factories storages storagefactories reservations transfers client-server-transfers tasks"


async def test_001_anybody_sees_the_base_document_as_nobody(api: Any) -> None:
    client = (await api.document(anonymous=True))["client"]
    assert client["role"]["selected"] == "anonymous"
    assert client["xlogin"] == {}


async def test_002_a_user_sees_role_login_and_groups(api: Any) -> None:
    client = (await api.document())["client"]
    assert client["role"]["selected"] == "user"
    login = client["xlogin"]
    assert isinstance(login["UID"], str)
    assert login["UID"] in login["availableUIDs"]
    assert isinstance(login["availableGroups"], list)


async def test_003_links_lead_to_all_collections_below_the_base(api: Any) -> None:
    links = (await api.document())["_links"]
    assert set(LINKS.split()) <= set(links)
    assert "self" not in links
    assert all(link["href"].startswith(api.base + "/") for link in links.values())


async def test_004_fields_choose_the_top_level_keys(api: Any) -> None:
    assert set(await api.document("?fields=client")) == {"client"}


async def test_005_the_server_says_its_version_and_whether_it_takes_jobs(api: Any) -> None:
    server = (await api.document())["server"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(-.*)?", server["version"])
    assert isinstance(server["jobSubmission"]["enabled"], bool)


async def test_006_a_wrong_password_is_403_without_a_word(api: Any) -> None:
    wrong = type(api.user)(api.user.name, "wrong")
    reply = await api.get("", by=wrong)
    assert (reply.status, reply.body) == (403, b"")
    assert "WWW-Authenticate" not in reply.headers


async def test_007_a_bearer_token_nobody_accepts_is_403(api: Any) -> None:
    reply = await api.get("", headers={"Authorization": "Bearer gibberish"})
    assert (reply.status, reply.body) == (403, b"")


async def test_008_an_answer_brings_a_session(api: Any) -> None:
    reply = await api.get("/jobs")
    assert re.fullmatch(r"[0-9a-f-]{36}", reply.headers[SESSION])
    assert 0 < int(reply.headers[LIFETIME]) <= 28_800_000


async def test_009_a_session_replaces_credentials(api: Any) -> None:
    session = (await api.get("")).headers[SESSION]
    reply = await api.get("", anonymous=True, headers={SESSION: session})
    assert reply.status == 200
    assert reply.json()["client"]["role"]["selected"] == "user"
    assert (await api.get("/jobs", anonymous=True, headers={SESSION: session})).status == 200


async def test_010_a_session_stays_and_its_life_only_gets_shorter(api: Any) -> None:
    first = await api.get("")
    second = await api.get("", headers={SESSION: first.headers[SESSION]})
    assert second.headers[SESSION] == first.headers[SESSION]
    assert int(second.headers[LIFETIME]) <= int(first.headers[LIFETIME])


async def test_011_an_unknown_session_is_432_whatever_comes_with_it(api: Any) -> None:
    reply = await api.get("", headers={SESSION: "00000000-0000-0000-0000-000000000000"})
    assert (reply.status, reply.body) == (432, b"")


async def test_013_a_preference_chooses_the_group(api: Any) -> None:
    groups = (await api.document())["client"]["xlogin"]["availableGroups"]
    if len(groups) < 2:
        pytest.skip("needs somebody with two groups")
    for group in groups:
        client = (await api.document(headers={"X-UNICORE-User-Preferences": f"group:{group}"}))["client"]
        assert client["xlogin"]["group"] == group


@pytest.mark.parametrize("preference", ["uid:nobodyelse", "xlogin:nobodyelse", "group:nogroup", "role:admin"])
async def test_014_what_one_may_not_be_is_403(api: Any, preference: str) -> None:
    reply = await api.get("", headers={"X-UNICORE-User-Preferences": preference})
    assert (reply.status, reply.body) == (403, b"")


async def test_015_unreadable_preferences_are_403(api: Any) -> None:
    assert (await api.get("", headers={"X-UNICORE-User-Preferences": "nonsense"})).status == 403


async def _token(api: Any, query: str = "") -> tuple[str, dict[str, Any]]:
    reply = await api.get(f"/token{query}", accept="text/plain")
    assert reply.status == 200
    token = reply.body.decode()
    return token, jwt.decode(token, options={"verify_signature": False})


async def test_016_a_delegation_token_names_user_and_server(api: Any) -> None:
    token, claims = await _token(api)
    document = await api.document()
    assert _bare(claims["sub"]) == _bare(document["client"]["dn"])
    assert _bare(claims["iss"]) == _bare(document["server"]["credential"]["dn"])
    assert claims["etd"] == "true"
    assert claims["exp"] - claims["iat"] == 300
    certificate = await api.get("/certificate", accept="text/plain")
    if certificate.status == 200:
        key: Any = x509.load_pem_x509_certificate(certificate.body).public_key()
        assert jwt.decode(token, key, algorithms=["RS256", "ES256", "ES512", "EdDSA"]) == claims


def _bare(name: str) -> str:
    return ",".join(part.strip() for part in name.split(","))


async def test_017_a_token_can_be_longer_and_for_this_server_only(api: Any) -> None:
    _, claims = await _token(api, "?lifetime=600&limited=true")
    assert claims["exp"] - claims["iat"] == 600
    assert _bare(claims["aud"]) == _bare(claims["iss"])


async def test_018_a_delegation_token_logs_in(api: Any) -> None:
    mine = (await api.document())["client"]["dn"]
    for query in ("", "?limited=true"):
        token, _ = await _token(api, query)
        client = (await api.document(headers={"Authorization": f"Bearer {token}"}))["client"]
        assert _bare(client["dn"]) == _bare(mine)
        assert client["authenticationMethod"] == "ETD"


async def test_019_a_tampered_token_is_403(api: Any) -> None:
    token, claims = await _token(api)
    head, _, signature = token.split(".")
    forged = jwt.encode({**claims, "exp": claims["exp"] + 1}, "x" * 32, algorithm="HS256").split(".")[1]
    reply = await api.get("", headers={"Authorization": f"Bearer {head}.{forged}.{signature}"})
    assert (reply.status, reply.body) == (403, b"")


async def test_019_an_expired_token_is_403(api: Any, control: Any) -> None:
    for claims in ({"exp": 1}, {"iss": "CN=Elsewhere"}):
        token = control.site.key.token("CN=Demo User,O=UNICORE,C=EU", control.site.clock.now(), 300, claims)
        assert (await api.get("", headers={"Authorization": f"Bearer {token}"})).status == 403


async def test_019_a_token_without_an_end_is_403(api: Any, control: Any) -> None:
    key = control.site.key
    token = jwt.encode({"sub": "CN=Demo User", "iss": key.dn, "etd": "true"}, key._private, algorithm="ES256")
    assert (await api.get("", headers={"Authorization": f"Bearer {token}"})).status == 403


async def test_020_nobody_submits_anonymously(api: Any) -> None:
    before = await api.document("/jobs")
    reply = await api.post("/jobs", {}, anonymous=True)
    assert (reply.status, reply.body) == (403, b"")
    assert (await api.document("/jobs"))["jobs"] == before["jobs"]


async def test_020_a_person_without_a_mapping_is_anonymous(api: Any, control: Any) -> None:
    unmapped = type(api.user)("unmapped", "test789")
    client = (await api.document(by=unmapped))["client"]
    assert client["role"] == {"selected": "anonymous", "availableRoles": ["anonymous"]}
    assert client["xlogin"] == {}
    assert (await api.post("/jobs", {}, by=unmapped)).status == 403


async def test_021_an_impossible_media_type_is_406(api: Any) -> None:
    assert (await api.get("", accept="application/xml")).status == 406


async def test_021_a_browser_sees_html(api: Any) -> None:
    reply = await api.get("", accept="text/html")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/html")
