"""The typed methods of the account API, to be awaited.

Written by ``tests/lava_methods.py`` from the table in ``resources``: change the table, not this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from proxy.lava import records
from proxy.lava.paging import PagedResource
from proxy.lava.wire import UNSET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from proxy.lava.paging import Pages
    from proxy.lava.wire import Unset


class CheckoutSessions(PagedResource):
    """Checkouts: how a customer buys a plan or credit."""

    async def create(
        self,
        *,
        checkout_mode: Literal["subscription", "credit_bundle", "onboarding", "topup"],
        origin_url: str,
        customer_id: str | None = None,
        plan_id: str | None = None,
        credit_bundle_id: str | None = None,
        connection_id: str | None = None,
        subscription_config_id: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> records.CheckoutSession:
        """Create a checkout, where a customer subscribes or buys credit (``POST checkout_sessions``)."""
        return await self._one(records.CheckoutSession, "checkout_sessions.create", locals())


class Connections(PagedResource):
    """Customers, under the name of SDK 8."""

    def list(self, *, cursor: str | None = None, limit: int | None = None) -> Pages[records.Connection]:
        """List connections (``GET connections``)."""
        return self._pages(records.Connection, "connections.list", locals())

    async def retrieve(self, connection_id: str) -> records.Connection:
        """Retrieve one connection (``GET connections/{connection_id}``)."""
        return await self._one(records.Connection, "connections.retrieve", locals())

    async def get_subscription(self, connection_id: str) -> records.CurrentSubscription:
        """Retrieve the connection's subscription, with plan and remaining credits (``GET connections/{connection_id}/subscription``)."""
        return await self._one(records.CurrentSubscription, "connections.get_subscription", locals())

    async def delete(self, connection_id: str) -> records.Done:
        """Delete a connection (``DELETE connections/{connection_id}``)."""
        return await self._one(records.Done, "connections.delete", locals())


class Customers(PagedResource):
    """Customers (SDK 9 and later)."""

    async def create(
        self,
        *,
        reference_id: str | None = None,
        email: str | None = None,
        phone: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> records.Customer:
        """Create a customer (``POST customers``)."""
        return await self._one(records.Customer, "customers.create", locals())

    def list(self, *, cursor: str | None = None, limit: int | None = None) -> Pages[records.Customer]:
        """List customers (``GET customers``)."""
        return self._pages(records.Customer, "customers.list", locals())

    async def retrieve(self, customer_id: str) -> records.Customer:
        """Retrieve one customer (``GET customers/{customer_id}``)."""
        return await self._one(records.Customer, "customers.retrieve", locals())

    async def update(
        self,
        customer_id: str,
        *,
        reference_id: str | Unset | None = UNSET,
        email: str | Unset | None = UNSET,
        phone: str | Unset | None = UNSET,
        name: str | Unset | None = UNSET,
        metadata: Mapping[str, Any] | Unset | None = UNSET,
        extra_body: Mapping[str, Any] | None = None,
    ) -> records.Customer:
        """Change a customer (``PATCH customers/{customer_id}``)."""
        return await self._one(records.Customer, "customers.update", locals())

    async def get_subscription(self, customer_id: str) -> records.CurrentSubscription:
        """Retrieve the customer's subscription, with plan and remaining credits (``GET customers/{customer_id}/subscription``)."""
        return await self._one(records.CurrentSubscription, "customers.get_subscription", locals())

    async def delete(self, customer_id: str) -> records.Done:
        """Delete a customer (``DELETE customers/{customer_id}``)."""
        return await self._one(records.Done, "customers.delete", locals())


class Requests(PagedResource):
    """Requests through the gateway, and reported ones."""

    def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        customer_id: str | None = None,
        meter_id: str | None = None,
        metadata_filters: Mapping[str, str] | None = None,
        connection_id: str | None = None,
    ) -> Pages[records.Request]:
        """List requests (``GET requests``)."""
        return self._pages(records.Request, "requests.list", locals())

    async def create(
        self,
        *,
        request_id: str,
        meter_slug: str,
        customer_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        input_characters: int | None = None,
        output_characters: int | None = None,
        input_seconds: int | None = None,
        output_seconds: int | None = None,
        connection_id: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> records.Request:
        """Report usage that did not go through the gateway (``POST requests``)."""
        return await self._one(records.Request, "requests.create", locals())

    async def retrieve(self, request_id: str) -> records.Request:
        """Retrieve one request (``GET requests/{request_id}``)."""
        return await self._one(records.Request, "requests.retrieve", locals())


class Usage(PagedResource):
    """Usage and costs by day."""

    async def retrieve(
        self,
        *,
        start: datetime | str,
        end: datetime | str | None = None,
        customer_id: str | None = None,
        meter_id: str | None = None,
        metadata_filters: Mapping[str, str] | None = None,
        connection_id: str | None = None,
    ) -> records.UsageReport:
        """Retrieve usage and costs by day, with totals (``GET usage``)."""
        return await self._one(records.UsageReport, "usage.retrieve", locals())


class Subscriptions(PagedResource):
    """The plans of customers."""

    def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        status: Literal["active", "cancelled", "all"] | None = None,
        customer_id: str | None = None,
        connection_id: str | None = None,
    ) -> Pages[records.Subscription]:
        """List subscriptions (``GET subscriptions``)."""
        return self._pages(records.Subscription, "subscriptions.list", locals())

    async def create(
        self,
        *,
        customer_id: str,
        plan_id: str,
        extra_body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> records.CurrentSubscription:
        """Give a customer a plan (Lava: free plans only, the others need a checkout) (``POST subscriptions``)."""
        return await self._one(records.CurrentSubscription, "subscriptions.create", locals())

    async def update(
        self,
        subscription_id: str,
        *,
        auto_top_up_bundle_id: str | Unset | None = UNSET,
        extra_body: Mapping[str, Any] | None = None,
    ) -> records.Done:
        """Change a subscription (``PATCH subscriptions/{subscription_id}``)."""
        return await self._one(records.Done, "subscriptions.update", locals())

    async def cancel(self, subscription_id: str) -> records.Done:
        """Cancel a subscription (``DELETE subscriptions/{subscription_id}``)."""
        return await self._one(records.Done, "subscriptions.cancel", locals())


class SubscriptionConfigs(PagedResource):
    """Plans, under the name of SDK 8."""

    def list(self, *, cursor: str | None = None, limit: int | None = None) -> Pages[records.SubscriptionConfig]:
        """List plans (``GET subscription_configs``)."""
        return self._pages(records.SubscriptionConfig, "subscription_configs.list", locals())

    async def retrieve(self, subscription_config_id: str) -> records.SubscriptionConfig:
        """Retrieve one plan (``GET subscription_configs/{subscription_config_id}``)."""
        return await self._one(records.SubscriptionConfig, "subscription_configs.retrieve", locals())

    async def create(
        self,
        *,
        name: str,
        period_amount: Decimal | str,
        billing_interval: Literal["day", "week", "month", "year"],
        rollover_type: Literal["full", "none"] | None = None,
        bundle_rollover_type: Literal["full", "none"] | None = None,
        included_credit: Decimal | str | None = None,
        default_auto_top_up_bundle_index: int | Unset | None = UNSET,
        meter_ids: Sequence[str] | None = None,
        credit_bundles: Sequence[Mapping[str, Any]] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> records.SubscriptionConfig:
        """Create a plan (``POST subscription_configs``)."""
        return await self._one(records.SubscriptionConfig, "subscription_configs.create", locals())

    async def update(
        self,
        subscription_config_id: str,
        *,
        name: str | None = None,
        rollover_type: Literal["full", "none"] | None = None,
        bundle_rollover_type: Literal["full", "none"] | None = None,
        included_credit: Decimal | str | None = None,
        default_auto_top_up_bundle_id: str | Unset | None = UNSET,
        meter_ids: Sequence[str] | None = None,
        credit_bundles: Sequence[Mapping[str, Any]] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> records.SubscriptionConfig:
        """Change a plan (``PATCH subscription_configs/{subscription_config_id}``)."""
        return await self._one(records.SubscriptionConfig, "subscription_configs.update", locals())

    async def delete(self, subscription_config_id: str) -> records.Deleted:
        """Delete a plan (``DELETE subscription_configs/{subscription_config_id}``)."""
        return await self._one(records.Deleted, "subscription_configs.delete", locals())


class Plans(PagedResource):
    """Plans (SDK 9 and later)."""

    def list(self, *, cursor: str | None = None, limit: int | None = None) -> Pages[records.Plan]:
        """List plans (``GET plans``)."""
        return self._pages(records.Plan, "plans.list", locals())

    async def retrieve(self, plan_id: str) -> records.Plan:
        """Retrieve one plan (``GET plans/{plan_id}``)."""
        return await self._one(records.Plan, "plans.retrieve", locals())

    async def create(
        self,
        *,
        name: str,
        period_amount: Decimal | str,
        billing_interval: Literal["day", "week", "month", "year"],
        rollover_type: Literal["full", "none"] | None = None,
        bundle_rollover_type: Literal["full", "none"] | None = None,
        included_credit: Decimal | str | None = None,
        default_auto_top_up_bundle_index: int | Unset | None = UNSET,
        meter_ids: Sequence[str] | None = None,
        credit_bundles: Sequence[Mapping[str, Any]] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> records.Plan:
        """Create a plan (``POST plans``)."""
        return await self._one(records.Plan, "plans.create", locals())

    async def update(
        self,
        plan_id: str,
        *,
        name: str | None = None,
        rollover_type: Literal["full", "none"] | None = None,
        bundle_rollover_type: Literal["full", "none"] | None = None,
        included_credit: Decimal | str | None = None,
        default_auto_top_up_bundle_id: str | Unset | None = UNSET,
        meter_ids: Sequence[str] | None = None,
        credit_bundles: Sequence[Mapping[str, Any]] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> records.Plan:
        """Change a plan (``PATCH plans/{plan_id}``)."""
        return await self._one(records.Plan, "plans.update", locals())

    async def delete(self, plan_id: str) -> records.Deleted:
        """Delete a plan (``DELETE plans/{plan_id}``)."""
        return await self._one(records.Deleted, "plans.delete", locals())


class Meters(PagedResource):
    """The rates by which usage is charged."""

    def list(self, *, cursor: str | None = None, limit: int | None = None) -> Pages[records.Meter]:
        """List meters (``GET meters``)."""
        return self._pages(records.Meter, "meters.list", locals())

    async def retrieve(self, meter_id: str) -> records.Meter:
        """Retrieve one meter (``GET meters/{meter_id}``)."""
        return await self._one(records.Meter, "meters.retrieve", locals())

    async def create(
        self,
        *,
        name: str,
        rate_type: Literal["fixed", "percentage"],
        tier_type: Literal["tokens_1m", "characters_1m", "minutes", "requests"],
        tiers: Sequence[Mapping[str, Any]],
        meter_slug: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> records.Meter:
        """Create a meter (``POST meters``)."""
        return await self._one(records.Meter, "meters.create", locals())

    async def update(
        self,
        meter_id: str,
        *,
        name: str | None = None,
        tiers: Sequence[Mapping[str, Any]] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> records.Meter:
        """Change a meter (``PATCH meters/{meter_id}``)."""
        return await self._one(records.Meter, "meters.update", locals())

    async def delete(self, meter_id: str) -> records.Deleted:
        """Delete a meter (``DELETE meters/{meter_id}``)."""
        return await self._one(records.Deleted, "meters.delete", locals())


class CreditBundles(PagedResource):
    """Credit that is sold in addition to a plan."""

    def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        plan_id: str | None = None,
        subscription_config_id: str | None = None,
    ) -> Pages[records.CreditBundle]:
        """List credit bundles (``GET credit_bundles``)."""
        return self._pages(records.CreditBundle, "credit_bundles.list", locals())

    async def retrieve(self, credit_bundle_id: str) -> records.CreditBundle:
        """Retrieve one credit bundle (``GET credit_bundles/{credit_bundle_id}``)."""
        return await self._one(records.CreditBundle, "credit_bundles.retrieve", locals())


class Webhooks(PagedResource):
    """Addresses to which Lava sends events."""

    def list(self, *, cursor: str | None = None, limit: int | None = None) -> Pages[records.Webhook]:
        """List webhooks (``GET webhooks``)."""
        return self._pages(records.Webhook, "webhooks.list", locals())

    async def retrieve(self, webhook_id: str) -> records.Webhook:
        """Retrieve one webhook (``GET webhooks/{webhook_id}``)."""
        return await self._one(records.Webhook, "webhooks.retrieve", locals())

    async def create(
        self, *, name: str, url: str, extra_body: Mapping[str, Any] | None = None, idempotency_key: str | None = None
    ) -> records.WebhookCreated:
        """Create a webhook (``POST webhooks``)."""
        return await self._one(records.WebhookCreated, "webhooks.create", locals())

    async def update(
        self,
        webhook_id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> records.Webhook:
        """Change a webhook (``PATCH webhooks/{webhook_id}``)."""
        return await self._one(records.Webhook, "webhooks.update", locals())

    async def delete(self, webhook_id: str) -> records.Deleted:
        """Delete a webhook (``DELETE webhooks/{webhook_id}``)."""
        return await self._one(records.Deleted, "webhooks.delete", locals())


class SecretKeys(PagedResource):
    """The merchant's keys."""

    def list(self, *, cursor: str | None = None, limit: int | None = None) -> Pages[records.SecretKey]:
        """List secret keys, with hints instead of the keys (``GET secret_keys``)."""
        return self._pages(records.SecretKey, "secret_keys.list", locals())

    async def create(
        self, *, name: str, extra_body: Mapping[str, Any] | None = None, idempotency_key: str | None = None
    ) -> records.SecretKeyCreated:
        """Create a secret key (``POST secret_keys``)."""
        return await self._one(records.SecretKeyCreated, "secret_keys.create", locals())

    async def delete(self, secret_key_id: str) -> records.Deleted:
        """Revoke a secret key (``DELETE secret_keys/{secret_key_id}``)."""
        return await self._one(records.Deleted, "secret_keys.delete", locals())


class SpendKeys(PagedResource):
    """Keys for one tool each, with limits."""

    async def create(
        self,
        *,
        name: str,
        status: Literal["active", "paused"] | None = None,
        request_shape: Literal["openai", "anthropic"] | None = None,
        allowed_models: Sequence[str] | Unset | None = UNSET,
        allowed_providers: Sequence[str] | Unset | None = UNSET,
        spend_limit: Mapping[str, Any] | Unset | None = UNSET,
        request_limit: Mapping[str, Any] | Unset | None = UNSET,
        rate_limit: Mapping[str, Any] | Unset | None = UNSET,
        expires_at: datetime | str | Unset | None = UNSET,
        extra_body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> records.SpendKeyCreated:
        """Create a spend key: for one tool, with limits (``POST spend_keys``)."""
        return await self._one(records.SpendKeyCreated, "spend_keys.create", locals())

    def list(self, *, cursor: str | None = None, limit: int | None = None) -> Pages[records.SpendKey]:
        """List spend keys, with what they have spent (``GET spend_keys``)."""
        return self._pages(records.SpendKey, "spend_keys.list", locals())

    async def retrieve(self, spend_key_id: str) -> records.SpendKey:
        """Retrieve one spend key (``GET spend_keys/{spend_key_id}``)."""
        return await self._one(records.SpendKey, "spend_keys.retrieve", locals())

    async def update(
        self,
        spend_key_id: str,
        *,
        name: str | None = None,
        status: Literal["active", "paused"] | None = None,
        request_shape: Literal["openai", "anthropic"] | None = None,
        allowed_models: Sequence[str] | Unset | None = UNSET,
        allowed_providers: Sequence[str] | Unset | None = UNSET,
        spend_limit: Mapping[str, Any] | Unset | None = UNSET,
        request_limit: Mapping[str, Any] | Unset | None = UNSET,
        rate_limit: Mapping[str, Any] | Unset | None = UNSET,
        expires_at: datetime | str | Unset | None = UNSET,
        extra_body: Mapping[str, Any] | None = None,
    ) -> records.SpendKey:
        """Change a spend key (``PUT spend_keys/{spend_key_id}``)."""
        return await self._one(records.SpendKey, "spend_keys.update", locals())

    async def revoke(self, spend_key_id: str) -> records.Done:
        """Revoke a spend key (``DELETE spend_keys/{spend_key_id}``)."""
        return await self._one(records.Done, "spend_keys.revoke", locals())

    async def rotate(self, spend_key_id: str, *, idempotency_key: str | None = None) -> records.SpendKeyCreated:
        """Give a spend key a new secret; the old one stops working (``POST spend_keys/{spend_key_id}/rotate``)."""
        return await self._one(records.SpendKeyCreated, "spend_keys.rotate", locals())


class WalletKeys(PagedResource):
    """Keys that manage a wallet's spend keys (gone in SDK 11)."""

    def list(self, *, cursor: str | None = None, limit: int | None = None) -> Pages[records.WalletKey]:
        """List wallet keys (``GET wallet_keys``)."""
        return self._pages(records.WalletKey, "wallet_keys.list", locals())

    async def revoke(self, wallet_key_id: str) -> records.Done:
        """Revoke a wallet key (``DELETE wallet_keys/{wallet_key_id}``)."""
        return await self._one(records.Done, "wallet_keys.revoke", locals())

    async def rotate(self, wallet_key_id: str, *, idempotency_key: str | None = None) -> records.WalletKeyCreated:
        """Give a wallet key a new secret; the old one stops working (``POST wallet_keys/{wallet_key_id}/rotate``)."""
        return await self._one(records.WalletKeyCreated, "wallet_keys.rotate", locals())


class Models(PagedResource):
    """The models of the gateway."""

    def list(self) -> Pages[records.ApiModel]:
        """List models (``GET models``)."""
        return self._pages(records.ApiModel, "models.list", locals())


class Wallet(PagedResource):
    """The wallet behind the key."""

    async def retrieve(self) -> records.WalletBalance:
        """Retrieve the wallet behind this key, with its balance (``GET wallet``)."""
        return await self._one(records.WalletBalance, "wallet.retrieve", locals())


class Fallback(PagedResource):
    """The account's chain of fallbacks."""

    async def retrieve(self) -> records.FallbackChain:
        """Retrieve the account's chain of fallbacks (``GET account/fallback``)."""
        return await self._one(records.FallbackChain, "fallback.retrieve", locals())

    async def update(
        self, *, chain: Sequence[Mapping[str, Any]] | Unset | None = UNSET, extra_body: Mapping[str, Any] | None = None
    ) -> records.FallbackChain:
        """Set the account's chain of fallbacks (``PATCH account/fallback``)."""
        return await self._one(records.FallbackChain, "fallback.update", locals())


class Auth(PagedResource):
    """The end of the login flow."""

    async def exchange_code(
        self, *, code: str, extra_body: Mapping[str, Any] | None = None, idempotency_key: str | None = None
    ) -> records.AuthCredentials:
        """Exchange the one-time code of a login for credentials (``POST auth/callback``)."""
        return await self._one(records.AuthCredentials, "auth.exchange_code", locals())


class Resources:
    """Every resource, as attributes of the client."""

    def __init__(self, lava: Any) -> None:
        self.checkout_sessions = CheckoutSessions(lava)
        self.connections = Connections(lava)
        self.customers = Customers(lava)
        self.requests = Requests(lava)
        self.usage = Usage(lava)
        self.subscriptions = Subscriptions(lava)
        self.subscription_configs = SubscriptionConfigs(lava)
        self.plans = Plans(lava)
        self.meters = Meters(lava)
        self.credit_bundles = CreditBundles(lava)
        self.webhooks = Webhooks(lava)
        self.secret_keys = SecretKeys(lava)
        self.spend_keys = SpendKeys(lava)
        self.wallet_keys = WalletKeys(lava)
        self.models = Models(lava)
        self.wallet = Wallet(lava)
        self.fallback = Fallback(lava)
        self.auth = Auth(lava)
