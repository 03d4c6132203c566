"""What a body over HTTP asks of sampling is asked of the router under the meaning that its protocol gives it."""

from headrace.services.rest.openai_chat import ChatBody
from headrace.services.rest.tgi_fields import Parameters

TURNS = [{"role": "user", "content": "Hello"}]


def asked(**fields: object) -> dict[str, object]:
    options = ChatBody.model_validate({"messages": TURNS, **fields}).options("r")
    return {name: value for name, value in options.items() if value is not None and name not in ("model", "request_id")}


def test_each_penalty_is_itself() -> None:
    """One server that came before made a repetition penalty of OpenAI's presence penalty, two higher."""
    assert asked(presence_penalty=0.5) == {"presence_penalty": 0.5}
    assert asked(frequency_penalty=-0.5) == {"frequency_penalty": -0.5}
    assert asked(repetition_penalty=1.1) == {"repetition_penalty": 1.1}


def test_a_bias_is_one_by_token_id() -> None:
    assert asked(logit_bias={"5": -100, "17": 2.5}) == {"logit_bias": {5: -100.0, 17: 2.5}}


def test_unset_leaves_the_choice_to_the_model_and_zero_is_zero() -> None:
    assert asked() == {}
    assert asked(temperature=0, top_k=0) == {"temperature": 0.0, "top_k": 0}


def test_tgi_decides_between_greedy_and_sampling_the_same_with_and_without_parameters() -> None:
    for parameters in (Parameters(), Parameters.model_validate({})):
        assert parameters.options("r", with_logprobs=False)["temperature"] == 0.0
    for name, value in {"top_p": 1.0, "typical_p": 1.0, "top_k": 5, "do_sample": True}.items():
        options = Parameters.model_validate({name: value}).options("r", with_logprobs=False)
        assert options["temperature"] == 1.0, name


def test_tgis_best_of_takes_a_seed() -> None:
    options = Parameters(best_of=3, do_sample=True, seed=5).options("r", with_logprobs=False)
    assert (options["best_of"], options["seed"]) == (3, 5)
