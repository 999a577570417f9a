"""The typed methods of the account API, for scripts: each waits for its answer.

Written by ``tests/lava_methods.py`` from the table in ``resources``: change the table, not this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.lava import methods
from proxy.lava.waiting import BlockingResource, lists, waits

if TYPE_CHECKING:
    from proxy.lava.waiting import Waiter


class _CheckoutSessions(BlockingResource):
    create = waits(methods.CheckoutSessions.create)


class _Connections(BlockingResource):
    list = lists(methods.Connections.list)
    retrieve = waits(methods.Connections.retrieve)
    get_subscription = waits(methods.Connections.get_subscription)
    delete = waits(methods.Connections.delete)


class _Customers(BlockingResource):
    create = waits(methods.Customers.create)
    list = lists(methods.Customers.list)
    retrieve = waits(methods.Customers.retrieve)
    update = waits(methods.Customers.update)
    get_subscription = waits(methods.Customers.get_subscription)
    delete = waits(methods.Customers.delete)


class _Requests(BlockingResource):
    list = lists(methods.Requests.list)
    create = waits(methods.Requests.create)
    retrieve = waits(methods.Requests.retrieve)


class _Usage(BlockingResource):
    retrieve = waits(methods.Usage.retrieve)


class _Subscriptions(BlockingResource):
    list = lists(methods.Subscriptions.list)
    create = waits(methods.Subscriptions.create)
    update = waits(methods.Subscriptions.update)
    cancel = waits(methods.Subscriptions.cancel)


class _SubscriptionConfigs(BlockingResource):
    list = lists(methods.SubscriptionConfigs.list)
    retrieve = waits(methods.SubscriptionConfigs.retrieve)
    create = waits(methods.SubscriptionConfigs.create)
    update = waits(methods.SubscriptionConfigs.update)
    delete = waits(methods.SubscriptionConfigs.delete)


class _Plans(BlockingResource):
    list = lists(methods.Plans.list)
    retrieve = waits(methods.Plans.retrieve)
    create = waits(methods.Plans.create)
    update = waits(methods.Plans.update)
    delete = waits(methods.Plans.delete)


class _Meters(BlockingResource):
    list = lists(methods.Meters.list)
    retrieve = waits(methods.Meters.retrieve)
    create = waits(methods.Meters.create)
    update = waits(methods.Meters.update)
    delete = waits(methods.Meters.delete)


class _CreditBundles(BlockingResource):
    list = lists(methods.CreditBundles.list)
    retrieve = waits(methods.CreditBundles.retrieve)


class _Webhooks(BlockingResource):
    list = lists(methods.Webhooks.list)
    retrieve = waits(methods.Webhooks.retrieve)
    create = waits(methods.Webhooks.create)
    update = waits(methods.Webhooks.update)
    delete = waits(methods.Webhooks.delete)


class _SecretKeys(BlockingResource):
    list = lists(methods.SecretKeys.list)
    create = waits(methods.SecretKeys.create)
    delete = waits(methods.SecretKeys.delete)


class _SpendKeys(BlockingResource):
    create = waits(methods.SpendKeys.create)
    list = lists(methods.SpendKeys.list)
    retrieve = waits(methods.SpendKeys.retrieve)
    update = waits(methods.SpendKeys.update)
    revoke = waits(methods.SpendKeys.revoke)
    rotate = waits(methods.SpendKeys.rotate)


class _WalletKeys(BlockingResource):
    list = lists(methods.WalletKeys.list)
    revoke = waits(methods.WalletKeys.revoke)
    rotate = waits(methods.WalletKeys.rotate)


class _Models(BlockingResource):
    list = lists(methods.Models.list)


class _Wallet(BlockingResource):
    retrieve = waits(methods.Wallet.retrieve)


class _Fallback(BlockingResource):
    retrieve = waits(methods.Fallback.retrieve)
    update = waits(methods.Fallback.update)


class _Auth(BlockingResource):
    exchange_code = waits(methods.Auth.exchange_code)


class BlockingResources:
    """Every resource, as attributes of the client."""

    def __init__(self, lava: methods.Resources, waiter: Waiter) -> None:
        self.checkout_sessions = _CheckoutSessions(lava.checkout_sessions, waiter)
        self.connections = _Connections(lava.connections, waiter)
        self.customers = _Customers(lava.customers, waiter)
        self.requests = _Requests(lava.requests, waiter)
        self.usage = _Usage(lava.usage, waiter)
        self.subscriptions = _Subscriptions(lava.subscriptions, waiter)
        self.subscription_configs = _SubscriptionConfigs(lava.subscription_configs, waiter)
        self.plans = _Plans(lava.plans, waiter)
        self.meters = _Meters(lava.meters, waiter)
        self.credit_bundles = _CreditBundles(lava.credit_bundles, waiter)
        self.webhooks = _Webhooks(lava.webhooks, waiter)
        self.secret_keys = _SecretKeys(lava.secret_keys, waiter)
        self.spend_keys = _SpendKeys(lava.spend_keys, waiter)
        self.wallet_keys = _WalletKeys(lava.wallet_keys, waiter)
        self.models = _Models(lava.models, waiter)
        self.wallet = _Wallet(lava.wallet, waiter)
        self.fallback = _Fallback(lava.fallback, waiter)
        self.auth = _Auth(lava.auth, waiter)
