#!/usr/bin/env bash
# Asks a sidecar with curl, as documentation and health checks do. Usage: curl.sh URL
set -euo pipefail
url=$1
turns='[{"role": "user", "content": "Why is the sky blue?"}]'

post() { curl --silent --show-error --fail-with-body "$url$1" --header 'content-type: application/json' --data "$2" "${@:3}"; }
# Reads everything: a grep that stops at the first hit would close the pipe before curl has written.
has() { grep --fixed-strings -- "$1" >/dev/null || { echo "curl: the answer lacks $1" >&2; exit 1; }; }

[ "$(curl --silent --output /dev/null --write-out '%{http_code}' "$url/health")" = 200 ]
post /v1/chat/completions "{\"messages\": $turns, \"max_tokens\": 4}" | has '"object":"chat.completion"'
post /v1/chat/completions "{\"messages\": $turns, \"max_tokens\": 4, \"stream\": true}" --no-buffer | has 'data: [DONE]'
post /v1/messages "{\"model\": \"\", \"messages\": $turns, \"max_tokens\": 4, \"stream\": true}" | has 'event: message_stop'
post /v1/responses "{\"input\": $turns, \"max_output_tokens\": 4, \"stream\": true}" | has 'event: response.incomplete'
post /generate '{"inputs": "Once", "parameters": {"max_new_tokens": 4}}' | has '"generated_text"'
# curl says Expect: 100-continue before a large body, and sends chunks from a pipe.
head --bytes 100000 /dev/zero | tr '\0' ' ' | cat - <(echo '{"prompt": "Once", "max_tokens": 2}') |
	curl --silent --show-error --fail-with-body "$url/v1/completions" --header 'content-type: application/json' \
		--header 'expect: 100-continue' --header 'transfer-encoding: chunked' --data-binary @- | has '"text_completion"'
echo '  curl'
