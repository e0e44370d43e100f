"""A service that sells its model: `uvicorn service:app`."""

import os

from fastapi import FastAPI, HTTPException, Request
from starlette.requests import HTTPConnection

from tokentill import AlreadySubscribed, BillingMiddleware, Gate, Scope, UsageTracker, current_usage

API_KEYS = {"key-of-ada": "ada", "key-of-bob": "bob"}  # Yours: a table of your users, or the session's user.
gate = Gate(os.environ["TOKENTILL_API_URL"], os.environ["TOKENTILL_TOKEN"], on_unreachable="open")
tracker = UsageTracker(os.environ["USAGE_QUEUE_URL"])


def user_of(scope: Scope) -> str | None:
    return API_KEYS.get(HTTPConnection(scope).headers.get("authorization", "").removeprefix("Bearer "))


app = FastAPI()
app.add_middleware(BillingMiddleware, gate=gate, tracker=tracker, user_id=user_of, include=["/v1"])


@app.post("/v1/summarise")
async def summarise(question: dict[str, str]) -> dict[str, str]:
    answer = "In short: " + question["text"][:40]  # Call your model here.
    usage = current_usage()
    usage.model("small")
    usage.tokens(in_=len(question["text"].split()), out=len(answer.split()))
    return {"answer": answer}


@app.post("/upgrade")
async def upgrade(request: Request) -> dict[str, str]:
    if (user_id := user_of(request.scope)) is None:
        raise HTTPException(401)
    try:
        return {"url": await gate.checkout(user_id, "pro", "https://example.com/thanks", "https://example.com/prices")}
    except AlreadySubscribed as already:
        return {"url": already.url or await gate.portal(user_id, "https://example.com/prices")}
