"""Whatever is asked of a node's pull API: a success, or an OCI error body with a 4xx or 503; never a 500."""

from __future__ import annotations

from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pregistry.testing.handlers import Answer, call
from p2pregistry.testing.node_stack import node_stack

WORDS = ["v2", "a", "acme", "blobs", "manifests", "tags", "list", "uploads", "referrers", "_catalog", "latest"]
ODD = ["..", "sha256:x", "%2e%2e", "%00", "%ff", "A"]
DIGESTS = ["sha256:" + "0" * 64, "sha512:" + "f" * 128]
PARTS = st.one_of(st.sampled_from(["", "a" * 300, *DIGESTS, *WORDS, *ODD]), st.text(max_size=20))
PATHS = st.lists(PARTS, max_size=7).map(lambda parts: "/" + "/".join(parts))
QUERIES = st.one_of(st.just(""), st.text(max_size=30).map(lambda text: "?" + text), st.just("?n=5&last=x&ns=docker.io"))
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "X"])
RANGES = st.one_of(st.none(), st.text(max_size=20), st.sampled_from(["bytes=0-", "bytes=5-1", "bytes=-", "bytes=-0"]))


@settings(max_examples=40)
@given(requests=st.lists(st.tuples(METHODS, PATHS, QUERIES, RANGES), min_size=1, max_size=25))
def test_any_request_is_answered_or_refused_with_a_reason(
    tmp_path_factory: object, requests: list[tuple[str, str, str, str | None]]
) -> None:
    async def main(folder: Path) -> list[tuple[str, Answer]]:
        async with node_stack(folder) as node:
            return [
                (method, await call(node.pull, method, path + query, headers=[("Range", part)] if part else []))
                for method, path, query, part in requests
            ]

    for method, answer in trio.run(main, tmp_path_factory.mktemp("node")):  # type: ignore[attr-defined]
        assert answer.status < 500 or answer.status == 503
        if answer.status >= 400 and method != "HEAD":
            assert answer.headers["content-type"] == "application/json"
            assert answer.code
