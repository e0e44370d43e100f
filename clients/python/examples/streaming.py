"""More of the service: a streamed answer, and a model that is tried again. `uvicorn streaming:app`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from fastapi.responses import StreamingResponse
from service import app

from tokentill import Usage, provide_usage


async def model(text: str) -> AsyncIterator[str]:
    for word in text.split():
        await asyncio.sleep(0.01)
        yield word + " "


@app.post("/v1/echo")
async def echo(question: dict[str, str], usage: Annotated[Usage, Depends(provide_usage)]) -> StreamingResponse:
    async def answer() -> AsyncIterator[str]:
        words = 0
        async for word in model(question["text"]):
            words += 1
            # Told as it grows: a client may go away at any moment.
            usage.tokens(in_=len(question["text"].split()), out=words)
            yield word

    return StreamingResponse(answer(), media_type="text/plain")


@app.post("/v1/patient")
async def patient(question: dict[str, str], usage: Annotated[Usage, Depends(provide_usage)]) -> dict[str, str]:
    for tried in range(3):
        try:
            if tried < int(question["failures"]):
                raise TimeoutError  # As your model's client would.
            usage.tokens(in_=1, out=1)
            return {"answer": "at last"}
        except TimeoutError:
            usage.attempt_failed("timeout")
    usage.fail("timeout")
    return {"answer": "the model does not answer"}
