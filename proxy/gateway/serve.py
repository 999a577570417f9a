"""One request, from its head to its record. ``serve`` reads from top to bottom: each step is one call into one module.

A new capability is one line here: a check before dispatch, a step at the head of the response, or a step at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.gateway import request_body, targets
from proxy.gateway.active_request import RequestEnded
from proxy.gateway.admit import admit
from proxy.gateway.dispatch import dispatch
from proxy.gateway.ending import StreamAborted, abort_stream, conclude, fail, refuse
from proxy.gateway.relay import relay
from proxy.http.exchange import ClientDisconnected
from proxy.protocol.errors import ProxyError

if TYPE_CHECKING:
    from proxy.gateway.gateway import Gateway
    from proxy.http.exchange import Exchange
    from proxy.protocol.tasks import RequestTask


async def serve(exchange: Exchange, gateway: Gateway, task: RequestTask) -> None:
    """Serve one request. Every request, and every error of one, is handled here."""
    active = gateway.open(exchange, task)  # id, record, registry, deadlines, disconnect
    try:
        template = admit(active)  # Host, Origin, local key, endpoint, project
        if template.limited:
            await gateway.admission.permit(active, template.project)  # limits on requests in flight, stops
        # Health, metrics, what this is, the list of models; everything else is forwarded.
        if template.page is None or not await template.page(gateway, active, template):
            body = await request_body.read(active, template)  # whole only if `model` in it decides
            prepared = await targets.prepare(active, template, body)  # provider, token, headers
            if active.budget is not None:
                await active.budget.hold(active, prepared, body)  # an estimate, if there is room for it
            response = await dispatch(active, prepared, body, gateway.intents)  # sent once; the response's head
            await relay(active, prepared, response)  # the response's headers and bytes
    except ProxyError as error:
        refuse(active, error)
    except StreamAborted as error:
        abort_stream(active, error)
    except (RequestEnded, ClientDisconnected) as error:
        await conclude(active, error)
    except Exception as error:  # noqa: BLE001  (the border: a fault of ours must not look like another's)
        gateway.log_error(error, active.record.request_id)
        fail(active)
    finally:
        gateway.release(active)  # budget, registry, response, observers
