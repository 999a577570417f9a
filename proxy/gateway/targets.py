"""The target of a request, chosen by its endpoint and its ``model``, and prepared for its destination."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.gateway import routing
from proxy.gateway.request_body import ONE_PIECE_BYTES
from proxy.protocol import body as bodies

if TYPE_CHECKING:
    from proxy.gateway.active_request import ActiveRequest
    from proxy.gateway.request_body import RequestBody
    from proxy.gateway.template import Prepared, Template


SMALL_BODY_BYTES: Final = 256 * 1024
"""A plain JSON body up to this size is searched in one step, which is faster."""


async def prepare(active: ActiveRequest, template: Template, body: RequestBody) -> Prepared:
    """Return the request to send. ``body`` is changed if the target needs another model name. Raises ``ProxyError``."""
    if not body.collected:
        return _note(active, _for_model(active, template, None))
    whole = b""
    if template.plain_json and body.size <= SMALL_BODY_BYTES:
        whole = body.whole if body.whole is not None else b"".join(body)
    if template.usage_option:
        prepared = await _ask_for_usage(active, template, body, whole)
        if prepared is not None:
            return _note(active, prepared)
    if whole:
        raw = bodies.raw_model(whole)
        known = template.prepared.get(raw) if raw else None
        if known is not None:
            if body.size <= ONE_PIECE_BYTES:
                body.send(whole)
            else:
                body.send_pieces(active, body.taken(), body.size)
            return _note(active, known)
        found = bodies.model_of(whole, raw)
    else:
        limit = active.config.max_body_bytes
        found = await body.search(template.received, limit)
    prepared = _for_model(active, template, found.name)
    replace = prepared.route.replace
    if replace is None:
        if template.plain_json and found.name is not None and prepared.reusable:
            template.keep(found.raw, prepared)
        body.send_pieces(active, body.taken(), body.size)
        return _note(active, prepared)
    if found.decoded:
        prepared = _for_model(active, template, found.name, decoded=True)
    _send_edited(active, template, body, [_rename(whole, found, replace)])
    return _note(active, prepared)


async def _ask_for_usage(active: ActiveRequest, template: Template, body: RequestBody, whole: bytes) -> Prepared | None:
    """Prepare a chat request so that its stream has the usage, and note to hide it. Raises ``ProxyError``.

    ``whole`` is a small body of plain JSON. Returns ``None`` if nothing is to be added, and ``model`` decides the target: such a
    request is as any other.
    """
    received, limit = template.received, active.config.max_body_bytes
    reads_model = template.endpoint.reads_body
    option = bodies.usage_option(whole) if whole else await body.search_usage_option(received, limit)
    if option is None and reads_model:
        return None
    found = bodies.BodyModel(None)
    if reads_model:
        found = bodies.model_of(whole, bodies.raw_model(whole)) if whole else await body.search(received, limit)
    if option is None:
        body.send_pieces(active, body.taken(), body.size)
        return _for_model(active, template, None)
    active.hides_usage = True
    prepared = _for_model(active, template, found.name, decoded=option.decoded, hides_usage=True)
    edits = [option]
    if prepared.route.replace is not None:
        edits.append(_rename(whole, found, prepared.route.replace))
    _send_edited(active, template, body, edits)
    return prepared


def _note(active: ActiveRequest, prepared: Prepared) -> Prepared:
    active.prepared = prepared
    record, route = active.record, prepared.route
    record.provider, record.model, record.hint = route.provider.name, route.model, route.hint
    return prepared


def _rename(whole: bytes, found: bodies.BodyModel, name: str) -> bodies.Edit:
    """Return the change that makes ``name`` the model of a body. Raises ``ProxyError``."""
    span = found.span or bodies.place_of(whole, found)
    return bodies.Edit(span, bodies.written(found, name), found.size, found.decoded)


def _send_edited(active: ActiveRequest, template: Template, body: RequestBody, edits: list[bodies.Edit]) -> None:
    """Send the body with these changes and every other byte unchanged; decoded if it was compressed."""
    pieces = body.taken()
    size = body.size
    if edits[0].decoded:
        limit = active.config.max_body_bytes
        pieces = bodies.decoded(pieces, template.received.noted[b"content-encoding"], limit)
        size = edits[0].size
    for edit in sorted(edits, key=lambda edit: edit.span, reverse=True):  # so that the other spans stay right
        pieces = bodies.replaced(pieces, edit.span, edit.new)
        size += len(edit.new) - (edit.span[1] - edit.span[0])
    body.send_pieces(active, pieces, size)


def _for_model(
    active: ActiveRequest, template: Template, model: str | None, *, decoded: bool = False, hides_usage: bool = False
) -> Prepared:
    """Return the prepared request for a model. It is made once for each head and model, unless the body is decoded."""
    key = (model,) if hides_usage else model
    prepared = template.prepared.get(key) if not decoded else None
    if prepared is None:
        config = template.config
        route = routing.route(template.method, template.endpoint, template.query, template.project, model, config.table)
        active.record.provider, active.record.model = route.provider.name, route.model
        prepared = config.destination.prepare(template, route, decoded=decoded, hides_usage=hides_usage)
        if prepared.reusable and not decoded:
            template.keep(key, prepared)
    return prepared
