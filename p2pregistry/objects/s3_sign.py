"""Signatures of requests to S3 (AWS Signature Version 4), made by botocore.

Only its signer is used: the requests themselves go over httpx. The signer writes what it signs to its log at level
DEBUG, session token included, so that logger is kept quiet here, whatever the program's level is.
"""

from __future__ import annotations

import hashlib
import logging
from base64 import b64encode
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlencode

from botocore.auth import S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from p2pregistry.objects.s3_config import S3Config

logging.getLogger("botocore.auth").setLevel(logging.INFO)

UNSIGNED: Final = "UNSIGNED-PAYLOAD"
_EMPTY: Final = hashlib.sha256().hexdigest()

#: What may be hashed and sent.
Buffer = bytes | bytearray | memoryview


class Signer:
    """Signs with the keys of one configuration. The keys of objects and the prefix have no character that would need an
    escape in a URL, so there is one way only to write a path."""

    def __init__(self, config: S3Config) -> None:
        self._config = config
        credentials = Credentials(config.access_key, config.secret_key, config.session_token)
        self._credentials = credentials
        self._auth = SigV4Auth(credentials, "s3", config.region)

    def seal(self, data: Buffer) -> dict[str, str]:
        """Headers by which a server refuses a body that arrives as another than ``data``. Hashes: call it in a thread
        for more than a little."""
        if not data:
            return {"X-Amz-Content-SHA256": _EMPTY}
        # Not every server compares the body with the hash that was signed (SeaweedFS 4.48 does not); all look at this.
        md5 = b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        signed = hashlib.sha256(data).hexdigest() if self._config.sign_payload else UNSIGNED
        return {"X-Amz-Content-SHA256": signed, "Content-MD5": md5}

    def headers(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """``headers``, which have those of ``seal``, with date and signature. ``url`` has its query escaped already."""
        request = AWSRequest(method=method, url=url, headers=dict(headers))
        self._auth.add_auth(request)
        return {str(name): str(value) for name, value in request.headers.items()}

    def link(self, key: str, lifetime: float, query: Mapping[str, str]) -> str:
        """A URL that anybody may GET for ``lifetime`` seconds; ``query`` has response-* overrides."""
        url = self._config.url(key, public=True)
        request = AWSRequest(method="GET", url=url + "?" + escaped(query) if query else url)
        S3SigV4QueryAuth(self._credentials, "s3", self._config.region, expires=int(lifetime)).add_auth(request)
        return str(request.url)


def escaped(query: Mapping[str, str]) -> str:
    """A query in the one form that is signed."""
    return urlencode(sorted(query.items()), quote_via=quote, safe="-_.~")
