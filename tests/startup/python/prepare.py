"""Makes what both webhook functions need in an emulated AWS, and prints the queue's URL."""

import os

import boto3

boto3.client("ssm").put_parameter(
    Name=os.environ["TOKENTILL_WEBHOOK_SECRETS_PARAMETER"], Value=os.environ["SECRET"], Type="SecureString", Overwrite=True
)
boto3.client("dynamodb").create_table(
    TableName=os.environ["IDEMPOTENCY_TABLE"],
    BillingMode="PAY_PER_REQUEST",
    KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
)
print(boto3.client("sqs").create_queue(QueueName="account-changes.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"])
