"""Twenty prompts of different lengths for comparing models: from one word to some hundred tokens."""

STORY = (
    "The river had been rising since Tuesday. On the far bank the mill stood with its feet in the water, and the"
    " miller's two sons carried sacks up the stairs, one after the other, without a word. Nobody in the village"
    " remembered such a spring. The bridge was closed, the school was closed, and the priest rang the bell at noon"
    " although there was nobody left on the road to hear it. Anna counted the boats from her window. There were"
    " seven in the morning and five in the afternoon, and by the evening the mist had taken the rest."
)
TURN = "<|im_start|>{role}\n{text}<|im_end|>\n"
ASSISTANT = "<|im_start|>assistant\n"


def chat(*texts: str) -> str:
    """A conversation as the example model's template writes it, the user's turn first."""
    roles = ("user", "assistant") * len(texts)
    return "".join(TURN.format(role=role, text=text) for role, text in zip(roles, texts, strict=False)) + ASSISTANT


PROMPTS = (
    "Hello",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4,",
    "Once upon a time",
    "Photosynthesis is the process by which",
    "import numpy as np\n\ndef softmax(x):\n",
    "Dear Sir or Madam,\n\n",
    "Ein Fluss ist",
    "{'name': 'Ada', 'year': 1815, 'field':",
    "Q: What is the largest planet of the solar system?\nA:",
    "The three laws of thermodynamics are as follows.\n1.",
    chat("Say only the word yes."),
    chat("What is two plus two?"),
    chat("Name three colours.", "Red, green and blue.", "Name three animals."),
    chat("Write one sentence about rivers."),
    STORY[:120],
    STORY[:300],
    STORY,
    STORY + "\n\n" + STORY[::-1] + "\n\nIn short:",
)
