// Reads what the server streams: events of any endpoint, and an answer of /v1/chat/completions from them.

/** An error with the words that a person is shown. `field` is the name of the field that is wrong, or "". */
export class Refusal extends Error {
  constructor(message, field = "") {
    super(message);
    this.field = field;
  }
}

/** The key goes with every call, as OpenAI's clients send it. */
export function authorization(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Calls the server; throws a Refusal unless it answers 2xx. */
export async function call(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached.");
  }
  if (!response.ok) throw await refusalOf(response);
  return response;
}

async function refusalOf(response) {
  const status = `HTTP ${response.status}`;
  let error;
  try {
    ({ error } = JSON.parse(await response.text()));
  } catch {
    // Not from the sidecar: a proxy writes HTML.
  }
  const words = error?.message ? `${error.message.replace(/\.$/, "")} (${status}).` : `The server refused: ${status}.`;
  const seconds = response.headers.get("retry-after");
  return new Refusal(seconds ? `${words} Try again in ${seconds} s.` : words, error?.param ?? "");
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** Yields the data of each server-sent event as text. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The connection broke off.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Streams an answer. `onText(text, isReasoning)` gets each piece as it comes. Returns what was measured, also when
 * `signal` stopped it: then `usage` is null, since the server counts at the end, and `reason` is "stopped".
 */
export async function answer(body, { key, signal, onText }) {
  const measured = { reason: "stopped", usage: null, firstTokenMs: null, lastTokenMs: null };
  const begunAt = performance.now();
  const request = { ...body, stream: true, stream_options: { include_usage: true } };
  const headers = { "content-type": "application/json", ...authorization(key) };
  let isWhole = false;
  try {
    const response = await call("v1/chat/completions", {
      method: "POST",
      headers,
      body: JSON.stringify(request),
      signal,
    });
    for await (const data of events(response)) {
      if (data === "[DONE]") {
        isWhole = true;
        break;
      }
      take(JSON.parse(data), measured, begunAt, onText);
    }
  } catch (error) {
    if (signal.aborted) return measured;
    throw error;
  }
  if (!isWhole) throw new Refusal("The answer broke off before its end.");
  return measured;
}

function take(chunk, measured, begunAt, onText) {
  if (chunk.error) throw new Refusal(sentence(chunk.error.message), chunk.error.param ?? "");
  measured.usage = chunk.usage ?? measured.usage;
  const choice = chunk.choices[0];
  if (!choice) return;
  measured.reason = choice.finish_reason ?? measured.reason;
  const { content, reasoning_content: reasoning } = choice.delta;
  if (!content && !reasoning) return;
  measured.lastTokenMs = performance.now() - begunAt;
  measured.firstTokenMs ??= measured.lastTokenMs;
  if (reasoning) onText(reasoning, true);
  if (content) onText(content, false);
}
