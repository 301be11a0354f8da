"""The HTTP side: routes, what a body may be, limits, and a sentence for everything else."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from sieve.serve.body import Limits, read_rows, request_schema
from sieve.serve.engine import Engine, Full

PAGE = Path(__file__).with_name("page.html")
REFUSALS = (
    (400, "the body is not JSON"),
    (409, "a row is as it should be, but too long for the model, or two of its answers are alike"),
    (413, "the body is too large"),
    (415, "the body is not said to be JSON"),
    (422, "a row does not hold"),
    (500, "the server failed"),
    (503, "too many rows wait"),
)


class Choice(BaseModel):
    """One of the answers a row may have."""

    label: str
    probability: float = Field(ge=0, le=1, description="among the choices of this row")
    loglikelihood: float | None = Field(description="of its tokens after the prompt, nats")


class Answer(BaseModel):
    """What the model answers to one row."""

    label: str
    index: int = Field(ge=0, description="of the label among the choices")
    choices: list[Choice]


class Answers(BaseModel):
    """The answers to the rows of a request, in their order."""

    answers: list[Answer]
    latency_ms: float = Field(ge=0, description="from the parsed request to its last answer")


class Problem(BaseModel):
    """What was wrong with a request, in one sentence."""

    detail: str


class Health(BaseModel):
    """Whether the server answers, and how many rows wait."""

    status: str
    waiting: int = Field(ge=0)


class TaskDescription(BaseModel):
    """What the page needs to know of the task."""

    name: str
    kind: str
    prompt: str
    fields: dict[str, list[str]] = Field(description="what a row has, and the columns it may be in")
    labels: list[str] = Field(description="empty where every row brings its options")


def make_app(engine: Engine, limits: Limits) -> FastAPI:
    """The application of one exported model; the engine starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    config = engine.task.config
    app = FastAPI(
        title=f"Sieve: {config.name}",
        description="Answers one task with a model that was sieved for it.",
        lifespan=lifespan,
        docs_url=None,  # Its pages are made of scripts from elsewhere.
        redoc_url=None,
    )

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        problem = f"the server failed on this request ({type(error).__name__}); its log says why."
        return JSONResponse({"detail": problem}, 500)

    @app.get("/health")
    async def health() -> Health:
        """Whether the server answers."""
        if not engine.alive:
            raise HTTPException(503, "the scoring thread has ended; restart the server.")
        return Health(status="ok", waiting=engine.waiting)

    @app.get("/task")
    async def task() -> TaskDescription:
        """The task, its prompt and the fields of a row."""
        return TaskDescription(
            name=config.name,
            kind=config.kind,
            prompt=config.prompt.replace("\\n", "\n"),
            fields=engine.task.columns(),
            labels=config.labels if config.kind == "classification" else [],
        )

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        """A page to type a row into."""
        return PAGE.read_text(encoding="utf-8")

    @app.post(
        "/predict",
        responses={code: {"model": Problem, "description": text} for code, text in REFUSALS},
        openapi_extra={"requestBody": request_schema(engine.task, limits)},
    )
    async def predict(request: Request) -> Answers:
        """Label, probabilities and latency of one row, or of many under `rows`."""
        start = time.perf_counter()
        rows = await read_rows(request, engine.task, limits)
        answers = await answer_rows(rows, engine)
        return Answers(answers=answers, latency_ms=1000 * (time.perf_counter() - start))

    return app


async def answer_rows(rows: list[dict[str, Any]], engine: Engine) -> list[Answer]:
    """The model's answers; HTTPException with a sentence where a row or the queue does not hold."""
    try:
        examples = [
            engine.task.question(row, f"row {number}") for number, row in enumerate(rows, 1)
        ]
    except ValueError as error:  # What it advises is for those who run the task.
        raise HTTPException(422, f"{str(error).rpartition('; ')[0]}.") from error
    try:
        encoded = await asyncio.to_thread(engine.encode, examples)
    except ValueError as error:
        # All that a schema can ask of a row holds: what is in the way is this model.
        raise HTTPException(409, str(error)) from error
    try:
        future = engine.submit(encoded)
    except Full as error:
        raise HTTPException(
            503, f"{engine.waiting} rows wait already, expected at most {engine.max_waiting} with "
            f"the {len(rows)} of this request; try again in a second.",
            headers={"Retry-After": "1"},
        ) from error  # fmt: skip
    found = await asyncio.wrap_future(future)
    return [
        to_answer(engine.task.words(example), logprobs)
        for example, logprobs in zip(examples, found, strict=True)
    ]


def to_answer(words: list[str], logprobs: list[float]) -> Answer:
    """The likeliest of some choices, and how likely each is among them."""
    top = max(logprobs)
    if not math.isfinite(top):
        raise HTTPException(500, "the model gave no finite log-likelihood for this row.")
    weights = [math.exp(value - top) for value in logprobs]
    index = logprobs.index(top)
    return Answer(
        label=words[index],
        index=index,
        choices=[
            Choice(
                label=word,
                probability=weight / sum(weights),
                loglikelihood=value if math.isfinite(value) else None,
            )
            for word, weight, value in zip(words, weights, logprobs, strict=True)
        ],
    )
