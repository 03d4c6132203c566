"""Asks a sidecar through `text-generation`, the client of Text Generation Inference.

Usage: text_generation_client.py URL. The client pins an old huggingface_hub, so it has an environment of its own, which
`make test-clients` makes.
"""

import asyncio
import sys

from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError

PROMPT = "Once upon a time"


def check_generate(client: Client) -> str:
    answer = client.generate(PROMPT, max_new_tokens=8, decoder_input_details=True, top_n_tokens=2)
    assert answer.generated_text
    assert (answer.details.finish_reason.value, answer.details.generated_tokens) == ("length", 8)
    assert len(answer.details.tokens) == len(answer.details.top_tokens) == 8
    assert answer.details.prefill[0].logprob is None
    assert all(token.logprob <= 0 for token in answer.details.prefill[1:])
    best = client.generate(PROMPT, max_new_tokens=4, best_of=2, do_sample=True)
    assert len(best.details.best_of_sequences) == 1
    return answer.generated_text


def check_stream(client: Client, text: str) -> None:
    events = list(client.generate_stream(PROMPT, max_new_tokens=8))
    assert "".join(event.token.text for event in events) == text
    assert [event.generated_text for event in events] == [None] * 7 + [text]
    assert events[-1].details.finish_reason.value == "length"
    stop = text[len(text) // 2 :][:3]
    stopped = list(client.generate_stream(PROMPT, max_new_tokens=8, stop_sequences=[stop]))
    assert stopped[-1].generated_text == text[: text.index(stop) + len(stop)]
    assert stopped[-1].details.finish_reason.value == "stop_sequence"


def check_chat(client: Client) -> None:
    turns = [{"role": "user", "content": PROMPT}]
    answer = client.chat(turns, max_tokens=8, temperature=0.0, seed=1)
    assert answer.choices[0].message.content
    assert answer.usage["completion_tokens"] == 8
    # It reads `[DONE]` as JSON and wants the role in every event: streams of OpenAI's protocol are not for it.


def check_refusal(url: str) -> None:
    # The client checks parameters by itself; this one passes it and not the server.
    message = ""
    try:
        Client(url).generate(PROMPT, max_new_tokens=4, top_n_tokens=50)
    except ValidationError as error:
        message = str(error)
    assert "top_n_tokens" in message


async def check_async(url: str, text: str) -> None:
    answers = await asyncio.gather(*(AsyncClient(url).generate(PROMPT, max_new_tokens=8) for _ in range(4)))
    assert {answer.generated_text for answer in answers} == {text}


if __name__ == "__main__":
    url = sys.argv[1]
    client = Client(url)
    text = check_generate(client)
    check_stream(client, text)
    check_chat(client)
    check_refusal(url)
    asyncio.run(check_async(url, text))
    print("  text-generation")
