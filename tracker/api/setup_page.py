"""``/setup``: the page behind the one-time URL with which the first administrator is made.

The secret stands behind the ``#`` of the URL, which browsers do not send, so that no proxy writes it down; a few lines
of script move it into the form. Without script it can be pasted.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

from p2pregistry.errors import RequestError
from p2pregistry.serve.http import Request, Response
from tracker.api.users import make_first
from tracker.catalog.trail import By
from tracker.identity.base import MAX_NAME, MAX_PASSWORD, MIN_PASSWORD, Accounts
from tracker.token_api import parse_form

PATH: Final = "/setup"
_LIMIT: Final = 16 << 10
_SCRIPT: Final = """
document.getElementById("secret").value = location.hash.slice(1);
"""
_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 32em; margin: 4em auto; padding: 0 1em; }
label { display: block; margin: 1em 0; } input { display: block; width: 100%; font: inherit; padding: .4em; }
button { font: inherit; padding: .4em 1.2em; } .wrong { color: #b00020; }
"""
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>p2pregistry</title><style>{style}</style></head><body><h1>p2pregistry</h1>
{body}</body></html>
"""
_FORM: Final = f"""{{said}}<p>Make the first administrator.</p><form method="post">
<label>One-time secret <input name="secret" id="secret" required autocomplete="off"></label>
<label>Name <input name="name" required maxlength="{MAX_NAME}" autocomplete="username"></label>
<label>Password <input name="password" type="password" required minlength="{MIN_PASSWORD}" maxlength="{MAX_PASSWORD}"
 autocomplete="new-password"></label>
<button>Make</button></form><script>{_SCRIPT}</script>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_POLICY: Final = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", _POLICY),
)


class SetupPage:
    """The handler."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Raises RegistryError."""
        if request.method == "POST":
            return await self._make(request)
        if request.method not in ("GET", "HEAD"):
            raise RequestError("UNSUPPORTED", "this cannot be done here", headers={"Allow": "GET, HEAD, POST"})
        if not await self._accounts.needs_setup():
            return _page(200, "<p>There is an administrator already.</p>")
        return _page(200, _FORM.format(said=""))

    async def _make(self, request: Request) -> Response:
        fields = dict(parse_form(request.header("content-type"), await request.body.read(_LIMIT)))
        secret, name, password = (fields.get(field, "") for field in ("secret", "name", "password"))
        try:
            made = await make_first(self._accounts, secret.strip(), name, password, By("", request.client, request.id))
        except RequestError as err:
            # what was typed is not put back: the secret is behind the # of the address, or can be pasted again
            return _page(err.status, _FORM.format(said=f'<p class="wrong">{escape(err.message)}</p>'))
        said = f"<p>The administrator <b>{escape(made.name)}</b> has been made.</p>"
        return _page(201, said + f"<pre>docker login {escape(request.header('host') or '')}</pre>")


def _page(status: int, body: str) -> Response:
    return Response(status, list(_HEADERS), _PAGE.format(style=_STYLE, body=body).encode())
