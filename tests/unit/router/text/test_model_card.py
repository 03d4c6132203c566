"""What is read from a model's files, and what is said when they are not enough."""

import json
import time
from pathlib import Path

import pytest
from chat_templates import TOOLS_TAKEN_FOR_GRANTED
from text_models import (
    CHAT_ML,
    byte_level_backend,
    byte_level_metadata,
    sentence_piece_metadata,
    write_folder,
    write_gguf,
)

from headrace.contract.chat_output import ToolFormat
from headrace.contract.errors import StartupError
from headrace.contract.generation import ChatMessage, ChatPrompt
from headrace.contract.sampling import SamplingParams
from headrace.router.model_card import ModelCard, load_model_card, load_tokenizer

GENERATION = {"temperature": 0.6, "top_p": 0.9, "top_k": 40}


def test_the_example_model(example_model: Path) -> None:
    card = load_model_card(example_model, "smollm2-135m-instruct")
    assert (card.name, card.architecture) == ("smollm2-135m-instruct", "llama")
    assert (card.context_token_count, card.vocabulary_size) == (8192, 49152)
    assert card.end_of_sequence_token_ids == (2,)
    assert card.default_sampling == SamplingParams()
    assert card.default_max_new_token_count is None
    assert card.special_tokens["bos_token"] == "<|im_start|>"
    assert card.special_tokens["eos_token"] == "<|im_end|>"


def test_a_conversation_with_the_example_model_is_tokens_of_its_own(example_model: Path) -> None:
    template = load_model_card(example_model, "example").compile_chat_template()
    assert template is not None
    text = template.render(ChatPrompt(messages=(ChatMessage(role="user", content="Hi"),)))
    ids = load_tokenizer(example_model).encode(text, add_special_tokens=False)
    assert [token_id for token_id in ids if token_id <= 2] == [1, 2, 1, 2, 1]


def test_the_example_model_is_there_in_a_moment(example_model: Path) -> None:
    """Process time, since the machine may be busy with other things."""
    begin = time.process_time()
    load_model_card(example_model, "example")
    load_tokenizer(example_model)
    assert time.process_time() - begin < 1.5


def test_a_folder(tmp_path: Path) -> None:
    card = load_model_card(write_folder(tmp_path), "m")
    assert card == ModelCard(
        name="m",
        architecture="LlamaForCausalLM",
        context_token_count=256,
        vocabulary_size=264,
        # The declared one, and the one that ends a turn in the chat template.
        end_of_sequence_token_ids=(256, 258),
        default_sampling=SamplingParams(temperature=0.6, top_p=0.9, top_k=40),
        default_max_new_token_count=50,
        chat_template=CHAT_ML,
        special_tokens={"bos_token": "<s>", "eos_token": "<s>"},
    )


def test_the_tokenizer_of_a_folder(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path))
    assert tokenizer.vocabulary_size == 259
    text = "é<|im_end|>"
    assert tokenizer.encode(text, add_special_tokens=True) == byte_level_backend().encode(text).ids


def test_the_bare_minimum_of_a_folder(tmp_path: Path) -> None:
    config = {"model_type": "mystery", "text_config": {"n_positions": 64, "vocab_size": 300}, "vocab_size": 7}
    folder = write_folder(tmp_path, config=config, generation_config=None, tokenizer_config=None)
    assert load_model_card(folder, "m") == ModelCard(
        name="m",
        architecture="mystery",
        context_token_count=64,
        vocabulary_size=300,
        end_of_sequence_token_ids=(),
    )


@pytest.mark.parametrize(
    ("generation", "config", "declared"),
    [
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 9}, (7, 8)),
        ({}, {"eos_token_id": 9}, (9,)),
        ({"eos_token_id": None}, {"eos_token_id": [9, 10]}, (9, 10)),
        ({}, {}, (256,)),
    ],
)
def test_the_most_specific_file_declares_the_end(
    tmp_path: Path, generation: dict[str, object], config: dict[str, object], declared: tuple[int, ...]
) -> None:
    base = {"max_position_embeddings": 64, "vocab_size": 300}
    tokenizer_config = {"eos_token": "<s>"}
    folder = write_folder(
        tmp_path, generation_config=generation, config=base | config, tokenizer_config=tokenizer_config
    )
    assert load_model_card(folder, "m").end_of_sequence_token_ids == declared


@pytest.mark.parametrize(
    ("generation", "sampling"),
    [
        ({}, SamplingParams()),
        ({"do_sample": True}, SamplingParams()),
        (GENERATION | {"do_sample": True}, SamplingParams(temperature=0.6, top_p=0.9, top_k=40)),
        (GENERATION | {"do_sample": False}, SamplingParams(temperature=0.0, top_p=0.9, top_k=40)),
        ({"top_k": -1, "repetition_penalty": 1.1}, SamplingParams(repetition_penalty=1.1)),
        ({"top_k": 10**6}, SamplingParams(top_k=264)),
    ],
)
def test_default_sampling(tmp_path: Path, generation: dict[str, object], sampling: SamplingParams) -> None:
    folder = write_folder(tmp_path, generation_config=generation)
    assert load_model_card(folder, "m").default_sampling == sampling


@pytest.mark.parametrize(("name", "value"), [("temperature", 5), ("top_p", 0), ("min_p", "0.1"), ("typical_p", True)])
def test_a_default_out_of_range_stops_the_start(tmp_path: Path, name: str, value: object) -> None:
    folder = write_folder(tmp_path, generation_config={name: value})
    with pytest.raises(StartupError, match=rf"generation_config\.json: the default {name} must be in"):
        load_model_card(folder, "m")


def test_a_template_in_a_file_of_its_own_comes_first(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}</s>")
    assert load_model_card(folder, "m").chat_template == "{{ messages[0].content }}</s>"


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    several = [{"name": "rag", "template": "x"}, {"name": "default", "template": "y"}]
    folder = write_folder(tmp_path, tokenizer_config={"chat_template": several})
    assert load_model_card(folder, "m").chat_template == "y"


def test_a_template_of_its_own_for_tools(tmp_path: Path) -> None:
    several = [{"name": "default", "template": CHAT_ML}, {"name": "tool_use", "template": TOOLS_TAKEN_FOR_GRANTED}]
    listed = load_model_card(write_folder(tmp_path / "listed", tokenizer_config={"chat_template": several}), "m")
    folder = write_folder(tmp_path / "filed")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS_TAKEN_FOR_GRANTED)
    metadata = byte_level_metadata() | {
        "tokenizer.chat_template": CHAT_ML,
        "tokenizer.chat_template.tool_use": TOOLS_TAKEN_FOR_GRANTED,
    }
    packed = load_model_card(write_gguf(tmp_path / "m.gguf", metadata), "m")
    for card in (listed, load_model_card(folder, "m"), packed):
        assert (card.chat_template, card.tool_chat_template) == (CHAT_ML, TOOLS_TAKEN_FOR_GRANTED)
        assert card.takes_tools
        assert card.tool_format is ToolFormat.HERMES


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (CHAT_ML, (256, 258)),
        ("{% for m in messages %}{{ m.content }} <s>{% endfor %}", (256,)),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", (256,)),
        ("{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{% endfor %}", (256,)),
        ("{{ raise_exception('never') }}", (256,)),
    ],
)
def test_the_end_of_a_turn_ends_a_completion(tmp_path: Path, template: str, ends: tuple[int, ...]) -> None:
    folder = write_folder(tmp_path, tokenizer_config={"chat_template": template})
    assert load_model_card(folder, "m").end_of_sequence_token_ids == ends


def test_a_gguf_file_with_all_it_may_say(tmp_path: Path) -> None:
    metadata = byte_level_metadata(eot_token_id=257) | {
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 20,
        "tokenizer.chat_template": CHAT_ML,
    }
    card = load_model_card(write_gguf(tmp_path / "m.gguf", metadata), "m")
    assert card.end_of_sequence_token_ids == (256, 257, 258)
    assert card.default_sampling == SamplingParams(temperature=0.5, top_k=20)
    assert card.special_tokens == {"bos_token": "<s>", "eos_token": "<s>"}


def test_a_gguf_file_with_scores(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", sentence_piece_metadata())
    assert load_model_card(path, "m").end_of_sequence_token_ids == (2,)
    assert load_tokenizer(path).vocabulary_size == 700


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="there is no model at"):
        load_model_card(tmp_path / "nothing", "m")
    (tmp_path / "model.bin").touch()
    with pytest.raises(StartupError, match=r"model\.bin is neither a folder nor a \.gguf file"):
        load_tokenizer(tmp_path / "model.bin")
    with pytest.raises(StartupError, match=r"has no config\.json"):
        load_model_card(write_folder(tmp_path / "a", config=None), "m")
    with pytest.raises(StartupError, match=r"has no tokenizer\.json"):
        load_model_card(write_folder(tmp_path / "b", tokenizer=None), "m")
    with pytest.raises(StartupError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path / "b")
    with pytest.raises(StartupError, match=r"config\.json has no positive max_position_embeddings or"):
        load_model_card(write_folder(tmp_path / "c", config={"vocab_size": 5}), "m")
    no_language = write_gguf(tmp_path / "d.gguf", {"general.architecture": "clip"})
    with pytest.raises(StartupError, match=r"d\.gguf lacks general\.architecture"):
        load_model_card(no_language, "m")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}', "\x00"])
def test_broken_files_are_named(tmp_path: Path, content: str) -> None:
    folder = write_folder(tmp_path, tokenizer=content)
    with pytest.raises(StartupError, match=r"tokenizer\.json"):
        load_tokenizer(folder)
    folder = write_folder(tmp_path, config=content if content != '{"model": 3}' else "3")
    with pytest.raises(StartupError, match=r"config\.json"):
        load_model_card(folder, "m")


def test_a_broken_template_stops_the_start(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tokenizer_config={"chat_template": "{% for %}"})
    with pytest.raises(StartupError, match="chat template is not valid"):
        load_model_card(folder, "m")


def test_files_with_unknown_keys_are_fine(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"novelty": [1, {}]}))
    assert load_model_card(folder, "m").context_token_count == 256
