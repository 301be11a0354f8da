"""The HTTP application of an exported model: routes, answers, and a sentence for every error."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from sieve.serve.body import Limits, read_rows, request_schema
from sieve.serve.engine import Engine, NotFinite, QueueFull, probabilities

PAGE = Path(__file__).with_name("page.html")
REFUSALS = (
    (400, "the body is not JSON"),
    (409, "a row is valid, but too long for the model, or two of its answers have the same tokens"),
    (413, "the body is too large"),
    (415, "the content type is not JSON"),
    (422, "a row is invalid"),
    (500, "the server failed"),
    (503, "too many rows are waiting"),
)


class Choice(BaseModel):
    """A possible answer to a row."""

    label: str
    probability: float = Field(ge=0, le=1, description="among the choices of this row")
    loglikelihood: float | None = Field(description="of its tokens after the prompt, in nats")


class Answer(BaseModel):
    """The answer of the model to one row."""

    label: str
    index: int = Field(ge=0, description="of the label among the choices")
    choices: list[Choice]


class WrittenAnswer(BaseModel):
    """What the model wrote for one row."""

    answer: str | None = Field(description="null if `written` has none in the form of the task")
    written: str = Field(description="all that the model wrote")


class Answers(BaseModel):
    """The answers to the rows of a request, in order."""

    answers: list[Answer] | list[WrittenAnswer]
    latency_ms: float = Field(ge=0, description="from the request to its last answer")


class Problem(BaseModel):
    """Why a request was refused, in one sentence."""

    detail: str


class Health(BaseModel):
    """Whether the server can answer, and how many rows are waiting."""

    status: str
    waiting: int = Field(ge=0)


class TaskDescription(BaseModel):
    """The task as the page at / shows it."""

    name: str
    kind: str
    prompt: str
    fields: dict[str, list[str]] = Field(description="each field of a row, with its columns")
    labels: list[str] = Field(description="empty if each row has its own options")


def make_app(engine: Engine, limits: Limits) -> FastAPI:
    """The application for one engine, which starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    config = engine.task.config
    app = FastAPI(
        title=f"Sieve: {config.name}",
        description="Answers one task with a model that Sieve pruned for it.",
        lifespan=lifespan,
        docs_url=None,  # These pages load scripts from other servers.
        redoc_url=None,
    )

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        problem = f"the server failed on this request ({type(error).__name__}); see its log."
        return JSONResponse({"detail": problem}, 500)

    @app.get("/health")
    async def health() -> Health:
        """Whether the server can answer."""
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
        """Label, probabilities and latency for one row, or for several under `rows`."""
        start = time.perf_counter()
        rows = await read_rows(request, engine.task, limits)
        answers = await answer_rows(rows, engine)
        return Answers(answers=answers, latency_ms=1000 * (time.perf_counter() - start))

    return app


async def answer_rows(
    rows: list[dict[str, object]], engine: Engine
) -> list[Answer] | list[WrittenAnswer]:
    """The answers of the model; HTTPException if a row is invalid or the queue is full."""
    task = engine.task
    try:
        examples = [task.question(row, f"row {number}") for number, row in enumerate(rows, 1)]
    except RecursionError as error:
        raise HTTPException(422, "a row is nested too deeply, expected texts.") from error
    except ValueError as error:  # The advice behind the semicolon is for the task's author.
        raise HTTPException(422, f"{str(error).rpartition('; ')[0]}.") from error
    try:
        encoded = await asyncio.to_thread(engine.encode, examples)
    except ValueError as error:  # The row fits the schema, but not this model.
        raise HTTPException(409, str(error)) from error
    try:
        future = engine.submit(encoded)
    except QueueFull as error:
        problem = (
            f"{engine.waiting} rows are waiting, expected at most {engine.max_waiting} with the "
            f"{len(rows)} of this request; try again in a second."
        )
        raise HTTPException(503, problem, headers={"Retry-After": "1"}) from error
    try:
        results = await asyncio.wrap_future(future)
    except NotFinite as error:
        raise HTTPException(500, str(error)) from error
    if (writing := engine.writing) is not None:
        texts = map(str, results)
        return [WrittenAnswer(answer=writing.extract_from(text), written=text) for text in texts]
    scores = [result for result in results if not isinstance(result, str)]
    return [
        to_answer(task.words(example), logprobs)
        for example, logprobs in zip(examples, scores, strict=True)
    ]


def to_answer(words: list[str], logprobs: list[float]) -> Answer:
    """The most likely choice, and the probability of each among the choices."""
    index = logprobs.index(max(logprobs))
    choices = [
        Choice(
            label=word,
            probability=probability,
            loglikelihood=value if math.isfinite(value) else None,
        )
        for word, probability, value in zip(words, probabilities(logprobs), logprobs, strict=True)
    ]
    return Answer(label=words[index], index=index, choices=choices)
