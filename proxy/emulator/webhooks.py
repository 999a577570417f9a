"""Webhooks of the account API; what they are sent is in ``outbox.py``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy.emulator import shapes
from proxy.emulator.asking import Ask, created, deleted, invalid, missing
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.keys import fresh
from proxy.emulator.records import StoredWebhook, new_id

if TYPE_CHECKING:
    from proxy.emulator.asking import Fields


def listed(ask: Ask) -> EmulatedReply:
    """``GET webhooks``"""
    return ask.page(ask.world.webhooks.values(), lambda one: one.webhook_id, shapes.webhook)


def create(ask: Ask) -> EmulatedReply:
    """``POST webhooks``: the only answer with the secret."""
    fields = ask.fields
    record = StoredWebhook(new_id("wh_"), fields.text("name"), _url(fields), fresh("whsec_"), ask.now)
    ask.world.webhooks[record.webhook_id] = record
    return created({**shapes.webhook(record), "webhook_secret": record.webhook_secret})


def _url(fields: Fields) -> str:
    url = fields.text("url")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not re.fullmatch("[!-~]+", url):
        raise invalid("url has to be an http or https URL.")
    return url


def _known(ask: Ask) -> StoredWebhook:
    record = ask.world.webhooks.get(ask.name)
    if record is None:
        raise missing("webhook", ask.name)
    return record


def retrieve(ask: Ask) -> EmulatedReply:
    """``GET webhooks/{id}``"""
    return json_reply(shapes.webhook(_known(ask)))


def update(ask: Ask) -> EmulatedReply:
    """``PATCH webhooks/{id}``"""
    record, fields = _known(ask), ask.fields
    name = fields.text("name") if "name" in fields else record.name
    url = _url(fields) if "url" in fields else record.url
    record.name, record.url = name, url
    return json_reply(shapes.webhook(record))


def delete(ask: Ask) -> EmulatedReply:
    """``DELETE webhooks/{id}``"""
    del ask.world.webhooks[_known(ask).webhook_id]
    return deleted(ask.name)
