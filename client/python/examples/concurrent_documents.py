"""Asks one question about many documents at once.

    python concurrent_documents.py "What is the total?" a.txt b.txt ... [--target=localhost:50051]

The server batches what comes together; more documents than --parallel wait here, not in its queue.
Where the server is full all the same, the document is tried again when it says so.
"""

import argparse
import asyncio
import pathlib

from tidal_client import AsyncClient, ResourceExhaustedError, Sampling, Stopping

MAX_ATTEMPTS = 5


async def ask(client: AsyncClient, limit: asyncio.Semaphore, question: str,
              path: pathlib.Path) -> str:
    prompt = f"{path.read_text(encoding='utf-8')}\n{question}"
    num_attempts = 0
    async with limit:
        while True:
            num_attempts += 1
            try:
                answer = await client.generate(prompt, sampling=Sampling(temperature=0),
                                               stopping=Stopping(max_new_tokens=64))
                return answer.text
            except ResourceExhaustedError as error:
                if num_attempts == MAX_ATTEMPTS:
                    raise
                await asyncio.sleep(error.retry_after_seconds or 1)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question")
    parser.add_argument("documents", nargs="+", type=pathlib.Path)
    parser.add_argument("--target", default="localhost:50051")
    parser.add_argument("--parallel", type=int, default=16)
    options = parser.parse_args()
    limit = asyncio.Semaphore(options.parallel)
    async with AsyncClient(options.target) as client:
        answers = await asyncio.gather(*(ask(client, limit, options.question, path)
                                         for path in options.documents))
    for path, answer in zip(options.documents, answers):
        print(f"{path}: {answer}")


if __name__ == "__main__":
    asyncio.run(main())
