"""The webhook's job as it is usually written in Python: Stripe's own check of the signature, Powertools' idempotency in
DynamoDB, one message to SQS. What Tokentill's `webhook` is held against in docs/performance.md.
"""

import base64
import json
import os

import boto3
import stripe
from aws_lambda_powertools.utilities import parameters
from aws_lambda_powertools.utilities.idempotency import DynamoDBPersistenceLayer, IdempotencyConfig, idempotent_function

SECRET = parameters.get_parameter(os.environ["TOKENTILL_WEBHOOK_SECRETS_PARAMETER"], decrypt=True)
QUEUE_URL = os.environ["TOKENTILL_ACCOUNT_CHANGES_QUEUE_URL"]
SQS = boto3.client("sqs")
CONFIG = IdempotencyConfig(event_key_jmespath="id")
STORE = DynamoDBPersistenceLayer(table_name=os.environ["IDEMPOTENCY_TABLE"])


@idempotent_function(data_keyword_argument="event", config=CONFIG, persistence_store=STORE)
def queue(event: dict) -> dict:
    obj = event["data"]["object"]
    hint = {"event_id": event["id"], "type": event["type"], "object_id": obj["id"], "customer": obj["customer"]}
    SQS.send_message(
        QueueUrl=QUEUE_URL,
        MessageBody=json.dumps(hint),
        MessageGroupId=hint["customer"],
        MessageDeduplicationId=hint["event_id"],
    )
    return {"queued": True}


def handler(event: dict, context) -> dict:
    CONFIG.register_lambda_context(context)
    body = base64.b64decode(event["body"]) if event["isBase64Encoded"] else event["body"].encode()
    try:
        stripe.Webhook.construct_event(body, event["headers"]["stripe-signature"], SECRET)
    except (ValueError, stripe.SignatureVerificationError):
        return {"statusCode": 400, "body": "refused"}
    # Stripe's own objects are no plain values, which the idempotency wants.
    queue(event=json.loads(body))
    return {"statusCode": 200, "body": "queued"}
