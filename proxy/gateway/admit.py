"""Access checks and routing of a head, before the body is read.

Access comes first, in this order: Host, Origin, local key. The result is cached with the head (``Template``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.gateway import access, model_list, pages, routing
from proxy.gateway.routing import EndpointKind
from proxy.gateway.template import Template
from proxy.protocol import clients, dialects, headers
from proxy.protocol.dialects import Dialect
from proxy.protocol.record import RequestFacts

if TYPE_CHECKING:
    from proxy.gateway.active_request import ActiveRequest


def admit(active: ActiveRequest) -> Template:
    """Return the template of a permitted request. Raises ``ProxyError``; ``active`` then has what is known so far."""
    memory = active.exchange.head.memory
    template = memory.template
    if isinstance(template, Template) and template.config is active.config:
        active.template = template
        active.record.path = template.shown_path
    else:
        template = memory.template = _judge(active)
    active.record.facts = template.facts
    return template


def _judge(active: ActiveRequest) -> Template:
    exchange, config = active.exchange, active.config
    head = exchange.head
    path, _, query = head.target.partition(b"?")
    received = headers.read(head.headers)
    template = active.template = Template(config, head.method, path, query, received)
    active.record.path = template.shown_path
    template.dialect = dialects.of_path(path, config.table.providers, head.method) or dialects.of_headers(
        received.noted
    )
    # Before any check: the page of a listed origin may read refusals, too.
    origin = template.origin = access.listed_origin(received, config)
    host = access.check_host(received, path, exchange.server, config)
    if origin is None:
        access.check_origin(received, host)
    elif head.method == "OPTIONS" and b"access-control-request-method" in received.noted:
        template.page = pages.preflight
        return template
    by_socket = exchange.server is not None and exchange.server[1] is None
    caller = template.caller = access.check_key(
        received, path, config, method=head.method, query=query, by_socket=by_socket
    )
    if path not in access.OPEN_PATHS:
        exchange.passed_access()
    template.page = pages.page_at(template, by_socket=by_socket)
    if template.page is not None:
        return template
    endpoint = template.endpoint = routing.locate(head.method, path, received.noted, config.table)
    template.dialect = endpoint.dialect
    requested = received.noted.get(headers.PROXY_PROJECT)
    template.project = routing.choose_project(caller.project, endpoint.project, requested, config.table)
    if endpoint.kind is EndpointKind.INFO:
        template.page = pages.about
    elif endpoint.kind is EndpointKind.CATALOG:
        template.page = model_list.answer
    else:
        template.facts = _facts(active, template)
        template.usage_option = _asks_for_usage(template)
    template.reads_body = endpoint.reads_body or template.usage_option
    template.limited = endpoint.kind is not EndpointKind.INFO
    return template


def _asks_for_usage(template: Template) -> bool:
    """Whether the streams of these requests are asked for their usage: chat completions of a project that wants it."""
    facts = template.facts
    return (
        facts is not None
        and facts.endpoint == "chat"
        and template.dialect is Dialect.OPENAI
        and template.method == "POST"
        and template.config.project(template.project).include_usage
    )


def _facts(active: ActiveRequest, template: Template) -> RequestFacts:
    tool, session, agent = clients.facts_of(active.exchange.head.headers)
    return RequestFacts(tool, session, agent, None, template.dialect.value, dialects.endpoint_name(template.path))
