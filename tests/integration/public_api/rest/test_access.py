"""Keys over HTTP: the sidecar passes them on, and each protocol has words for what the router says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.services.access_list import hash_key

KEY = "hr_a-key-of-a-test"
CHAT = {"model": "test-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
TGI = {"inputs": "hello", "parameters": {"max_new_tokens": 2}}


async def test_keys_and_limits_in_the_words_of_each_protocol(deploy_rest: Callable[..., Any], tmp_path: Path) -> None:
    access_file = tmp_path / "access.toml"
    access_file.write_text(
        f'[keys.app]\nsha256 = "{hash_key(KEY).hex()}"\n[keys.ops]\nsha256 = "{hash_key("ops").hex()}"\n'
        'roles = ["operate"]\n[tenants.app]\nrequests_per_minute = 3\n'
    )
    paths = (("/v1/chat/completions", CHAT), ("/v1/messages", CHAT), ("/generate", TGI))
    async with deploy_rest(access_file=access_file) as rest:

        async def ask(path: str, body: Any, **headers: str) -> Any:
            return await rest.http.post(path, json=body, headers=headers)

        assert (await rest.http.get("/health")).status_code == 200
        for key, status, words in (
            ("", 401, ("authentication_error", "authentication_error", "unauthenticated")),
            ("Bearer wrong", 401, ("authentication_error", "authentication_error", "unauthenticated")),
            ("Bearer ops", 403, ("permission_error", "permission_error", "forbidden")),
        ):
            for (path, body), word in zip(paths, words, strict=True):
                answer = await ask(path, body, **({"authorization": key} if key else {}))
                assert (answer.status_code, word in answer.text) == (status, True), answer.text
                assert "wrong" not in answer.text
                assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        for path, body in paths:
            name = {"x-api-key": KEY} if path == "/v1/messages" else {"authorization": f"Bearer {KEY}"}
            assert (await ask(path, body, **name)).status_code == 200
        for key, limit in ((KEY, type(None)), ("ops", int)):
            info = await rest.http.get("/info", headers={"authorization": f"Bearer {key}"})
            assert (info.status_code, type(info.json()["max_concurrent_requests"])) == (200, limit)
        for (path, body), word in zip(paths, ("rate_limit_error", "rate_limit_error", "overloaded"), strict=True):
            answer = await ask(path, body, authorization=f"Bearer {KEY}")
            assert (answer.status_code, word in answer.text) == (429, True), answer.text
            assert 15 <= int(answer.headers["retry-after"]) <= 21
