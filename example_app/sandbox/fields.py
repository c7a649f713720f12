"""The fields of Stripe's objects, as client 16.1 declares them; a test compares them with the installed client.

An answer has them all: those that the sandbox does not fill are null, as in Stripe's own answers.
"""

from __future__ import annotations

from typing import Any

SESSION_FIELDS = (
    "adaptive_pricing", "after_expiration", "allow_promotion_codes", "allowed_payment_method_types",
    "amount_subtotal", "amount_total", "automatic_tax", "billing_address_collection", "branding_settings",
    "cancel_url", "client_reference_id", "client_secret", "collected_information", "consent",
    "consent_collection", "created", "currency", "currency_conversion", "custom_fields", "custom_text",
    "customer", "customer_account", "customer_creation", "customer_details", "customer_email", "discounts",
    "excluded_payment_method_types", "expires_at", "id", "integration_identifier", "invoice",
    "invoice_creation", "line_items", "livemode", "locale", "managed_payments", "metadata", "mode",
    "name_collection", "object", "optional_items", "origin_context", "payment_intent", "payment_link",
    "payment_method_collection", "payment_method_configuration_details", "payment_method_options",
    "payment_method_types", "payment_status", "permissions", "phone_number_collection", "presentment_details",
    "recovered_from", "redirect_on_completion", "return_url", "saved_payment_method_options", "setup_intent",
    "shipping_address_collection", "shipping_cost", "shipping_options", "status", "submit_type", "subscription",
    "success_url", "tax_id_collection", "total_details", "ui_mode", "url", "wallet_options",
)  # fmt: skip
PAYMENT_INTENT_FIELDS = (
    "allowed_payment_method_types", "amount", "amount_capturable", "amount_details", "amount_received",
    "application", "application_fee_amount", "automatic_payment_methods", "canceled_at", "cancellation_reason",
    "capture_method", "client_secret", "confirmation_method", "created", "currency", "customer",
    "customer_account", "description", "excluded_payment_method_types", "hooks", "id", "last_payment_error",
    "latest_charge", "livemode", "managed_payments", "metadata", "next_action", "object", "on_behalf_of",
    "payment_details", "payment_method", "payment_method_configuration_details", "payment_method_options",
    "payment_method_types", "payment_record", "presentment_details", "processing", "receipt_email", "review",
    "setup_future_usage", "shipping", "source", "statement_descriptor", "statement_descriptor_suffix", "status",
    "transfer_data", "transfer_group",
)  # fmt: skip
CHARGE_FIELDS = (
    "amount", "amount_captured", "amount_refunded", "application", "application_fee", "application_fee_amount",
    "authorization_code", "balance_transaction", "billing_details", "calculated_statement_descriptor",
    "captured", "created", "currency", "customer", "description", "disputed", "failure_balance_transaction",
    "failure_code", "failure_message", "fraud_details", "id", "level3", "livemode", "metadata", "object",
    "on_behalf_of", "outcome", "paid", "payment_intent", "payment_method", "payment_method_details",
    "presentment_details", "radar_options", "receipt_email", "receipt_number", "receipt_url", "refunded",
    "refunds", "review", "shipping", "source", "source_transfer", "statement_descriptor",
    "statement_descriptor_suffix", "status", "transfer", "transfer_data", "transfer_group",
)  # fmt: skip
REFUND_FIELDS = (
    "amount", "balance_transaction", "charge", "created", "currency", "customer", "customer_account",
    "description", "destination_details", "failure_balance_transaction", "failure_reason", "id",
    "instructions_email", "metadata", "next_action", "object", "payment_intent", "payment_method",
    "pending_reason", "presentment_details", "reason", "receipt_number", "source_transfer_reversal", "status",
    "transfer_reversal",
)  # fmt: skip
EVENT_FIELDS = (
    "account", "api_version", "context", "created", "data", "id", "livemode", "object", "pending_webhooks",
    "request", "type",
)  # fmt: skip
ENDPOINT_FIELDS = (
    "api_version", "application", "created", "description", "enabled_events", "id", "livemode", "metadata",
    "object", "status", "url",
)  # fmt: skip


def complete(fields: tuple[str, ...], filled: dict[str, Any]) -> dict[str, Any]:
    """Return an object with all of its fields, null where nothing is filled in."""
    return {name: filled.get(name) for name in fields}
