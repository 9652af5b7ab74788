"""The OpenAPI 3.1 document and the table in docs/api.md, made from the table of routes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from p2pregistry import __version__
from tracker.api import documents as d
from tracker.api import ipfs_documents
from tracker.api.rules import Refusal

if TYPE_CHECKING:
    from tracker.api.routes import Route

_REF: Final = "#/components/schemas/{name}"
_JSON: Final = "application/json"
_DESCRIPTION: Final = """\
Accounts, repositories, tokens, nodes and keys of a p2pregistry tracker.

Who asks shows a name and a password, or a personal or robot token in place of the password (Basic), or the token alone
(Bearer); the access tokens of docker's clients are no credentials here. What one may not know of is answered as if it
were not there."""
_PARAMETERS: Final = {
    "user": "A user's name.",
    "organization": "An organization's name.",
    "account": "A user's or an organization's name.",
    "team": "A team's name.",
    "repository": "A repository's name, each slash in it written as %2F.",
    "id": "Its number.",
    "peer_id": "A node's peer id.",
    "reference": "A tag or a digest.",
}


def document(routes: Sequence[Route], prefix: str) -> dict[str, Any]:
    """The whole document."""
    given = [route.body for route in routes if route.body is not d.Nothing]
    given += [route.answer for route in routes if route.answer is not None]
    shapes, components = msgspec.json.schema_components([*given, d.Errors], ref_template=_REF)
    shape_of = dict(zip([*map(repr, given), repr(d.Errors)], shapes, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(prefix + route.path, {})[route.method.lower()] = _operation(route, shape_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "p2pregistry", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "token": {"type": "http", "scheme": "bearer", "description": "A personal or robot token."},
            },
        },
    }


def _operation(route: Route, shape_of: dict[str, Any]) -> dict[str, Any]:
    shown: list[dict[str, list[str]]] = [{"basic": []}, {"token": []}]
    everybody = all(refusal.status != 401 or "needed" not in refusal.when for refusal in route.refusals)
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.segments[0].removesuffix(".json")],
        "summary": route.summary,
        "description": f"Who may: {route.rule.text}",
        "security": [{}, *shown] if everybody else shown,
        "responses": {str(route.status): _response(route, shape_of), **_refused(route.refusals, shape_of)},
    }
    parameters = [*map(_in_path, re.findall(r"{(\w+)}", route.path)), *_in_query(route.query)]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not d.Nothing:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": shape_of[repr(route.body)]}}}
    return operation


def _response(route: Route, shape_of: dict[str, Any]) -> dict[str, Any]:
    if route.answer is None:
        return {"description": "Done."}
    return {"description": "Done.", "content": {_JSON: {"schema": shape_of[repr(route.answer)]}}}


def _refused(refusals: Iterable[Refusal], shape_of: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        found.setdefault(str(refusal.status), []).append(refusal)
    return {
        status: {
            "description": " ".join(f"{one.code}: {one.when}" for one in several),
            "content": {_JSON: {"schema": shape_of[repr(d.Errors)]}},
        }
        for status, several in found.items()
    }


def _in_path(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": _PARAMETERS[name],
        "schema": {"type": "string"},
    }


def _in_query(query: type[d.Document]) -> list[dict[str, Any]]:
    schema = msgspec.json.schema_components([query], ref_template=_REF)[1][query.__name__]
    required = schema["required"]
    return [
        {"name": name, "in": "query", "required": name in required, "schema": of_name}
        for name, of_name in schema["properties"].items()
    ]


def table(routes: Sequence[Route]) -> str:
    """For people, in Markdown."""
    lines = ["| | | who may | sent | answered | refused |", "| --- | --- | --- | --- | --- | --- |"]
    for route in routes:
        codes = dict.fromkeys(f"{one.status} {one.code}" for one in route.refusals if one.status not in (429, 503))
        cells = (
            f"`{route.method} {route.path}`",
            route.summary,
            route.rule.text,
            " ".join(_sent(route)) or "-",
            f"{route.status} {_name(route.answer)}".strip(),
            ", ".join(codes),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _sent(route: Route) -> list[str]:
    parameters = [f"`?{name}=`" for name in route.query.__struct_fields__]
    return ([f"`{route.body.__name__}`"] if route.body is not d.Nothing else []) + parameters


def _name(answer: Any) -> str:
    if answer is None:
        return ""
    return f"`{answer.__name__}`" if isinstance(answer, type) and issubclass(answer, msgspec.Struct) else "a document"


def documents() -> str:
    """The documents by name, with their fields, in Markdown."""
    found = [
        one
        for module in (d, ipfs_documents)
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, msgspec.Struct) and one.__module__ == module.__name__
    ]
    lines = []
    for one in sorted(found, key=lambda each: each.__name__):
        if one not in (msgspec.Struct, d.Document, d.Nothing, d.Page, d.Search, d.Deletion, d.Pattern, d.OfKind):
            fields = ", ".join(f"`{name}`" for name in one.__struct_fields__)
            lines.append(f"- `{one.__name__}` ({fields}): {' '.join((one.__doc__ or '').split())}")
    return "\n".join(lines) + "\n"
