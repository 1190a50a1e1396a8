"""The access token of a person's login, handed to systems at which people act with their own rights."""

from typing import Any

import pytest
from jupyterhub.auth import DummyAuthenticator
from stubworld import Hub, Start

from moorage.core.model import Owner, SystemName
from moorage.ports.errors import Unauthorised

ALPHA = SystemName("alpha")


class Login(DummyAuthenticator):  # type: ignore[misc]
    """A login that renews tokens as OAuth does, or finds that it cannot."""

    answer: Any = True

    async def refresh_user(self, user: Any, handler: Any = None) -> Any:
        return type(self).answer


async def logged_in_with(start_hub: Start, state: dict[str, Any] | None, answer: Any = True) -> Hub:
    Login.answer = answer
    hub = await start_hub(
        JupyterHub__authenticator_class=Login,
        Login__allowed_users={"alice"},
        Authenticator__enable_auth_state=True,
        Authenticator__auth_refresh_age=1,
        CryptKeeper__keys=[b"k" * 32],
    )
    user = hub.world.hub.user(Owner("alice"))
    await user.save_auth_state(state)
    user._auth_refreshed = 0  # long ago
    return hub


async def test_the_token_of_the_login_is_handed_on(start_hub: Start) -> None:
    hub = await logged_in_with(start_hub, {"access_token": "a-token"})
    token = await hub.world.hub.token(Owner("alice"), ALPHA)
    assert token.secret.reveal() == "a-token"
    assert "a-token" not in repr(token)


async def test_an_old_token_is_renewed_by_the_authenticator(start_hub: Start) -> None:
    renewed = {"name": "alice", "auth_state": {"access_token": "a-new-token"}}
    hub = await logged_in_with(start_hub, {"access_token": "an-old-token"}, renewed)
    assert (await hub.world.hub.token(Owner("alice"), ALPHA)).secret.reveal() == "a-new-token"


@pytest.mark.parametrize(
    ("owner", "state", "answer"),
    [
        ("nobody", {"access_token": "a-token"}, True),
        ("alice", {"access_token": "a-token"}, False),
        ("alice", {}, True),
        ("alice", None, True),
        ("alice", {"access_token": ["a-token"]}, True),
    ],
    ids=["unknown", "login is over", "no token", "no auth state", "no text"],
)
async def test_without_a_token_the_person_has_to_log_in_again(
    start_hub: Start, owner: str, state: dict[str, Any] | None, answer: Any
) -> None:
    hub = await logged_in_with(start_hub, state, answer)
    with pytest.raises(Unauthorised) as refused:
        await hub.world.hub.token(Owner(owner), ALPHA)
    assert "a-token" not in str(refused.value)
