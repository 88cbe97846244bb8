"""The OpenAPI document as one plain page, with no script and nothing from another host."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

__all__ = ["render_api_page"]

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#eee;padding:.1em .3em}table{border-collapse:collapse}"
    "td{border-top:1px solid #ccc;padding:.2rem 1rem .2rem 0;vertical-align:top}"
)


def render_api_page(openapi: Mapping[str, Any]) -> str:
    """HTML of every operation: its form's fields and its responses."""
    info = openapi["info"]
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    title = escape(f"{info['title']} {info['version']}")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p>{escape(info['description'])}</p>{operations}"
        "<h2>WS <code>/v1/realtime/video</code></h2><p>Frames in, frames out; see docs/serving.md.</p>"
        "<p>The same for programs: <a href='/openapi.json'>/openapi.json</a></p></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    heading = f"<h2>{escape(method.upper())} <code>{escape(path)}</code></h2>"
    return (
        heading
        + f"<p>{escape(operation.get('description', ''))}</p>"
        + _table("Form fields", _fields(operation))
        + _table("Responses", {code: each["description"] for code, each in operation["responses"].items()})
    )


def _fields(operation: Mapping[str, Any]) -> dict[str, str]:
    content = operation.get("requestBody", {}).get("content", {})
    fields = {}
    for each in content.values():
        for name, schema in each["schema"].get("properties", {}).items():
            choices = ", ".join(schema.get("enum", ()))
            default = f"default {schema['default']}" if "default" in schema else ""
            parts = (schema["type"], schema.get("description", ""), choices, default)
            fields[name] = "; ".join(part for part in parts if part)
    return fields


def _table(caption: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(text)}</td></tr>" for name, text in rows.items()
    )
    return f"<h3>{caption}</h3><table>{cells}</table>"
