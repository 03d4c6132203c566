// The conversation: sends it whole to /v1/chat/completions, shows the answer as it comes, and what was measured.

import { answer, authorization, call, Refusal } from "./answer_stream.js";
import { element, follow, milliseconds, noteFirstToken } from "./figures.js";

const byId = (id) => document.getElementById(id);
const KEY_NAME = "headrace-api-key";
const NUMBERS = [
  "temperature",
  "max_tokens",
  "top_p",
  "top_k",
  "min_p",
  "seed",
  "repetition_penalty",
  "presence_penalty",
  "frequency_penalty",
];
const NEAR_END_PX = 60;
const REASONS = { stop: "ended by itself", length: "cut at a limit", tool_calls: "called a tool", stopped: "stopped" };

const conversation = byId("conversation");
const composer = byId("composer");
const message = byId("message");
const sampling = byId("sampling");
const key = byId("key");

/** What the model is sent, without the system prompt. */
let turns = [];
let running = null;
let isAtEnd = true;

function announce(text) {
  byId("announcement").textContent = text;
}

function readSettings() {
  const body = { model: byId("model").value };
  for (const name of NUMBERS) {
    const input = sampling.elements[name];
    if (input.validity.badInput) throw new Refusal(`${name}: not a number`, name);
    if (input.value === "") continue;
    const value = Number(input.value);
    if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
      throw new Refusal(`${name}: a browser writes whole numbers exactly only up to ${Number.MAX_SAFE_INTEGER}`, name);
    }
    body[name] = value;
  }
  const stop = sampling.elements.stop.value
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replaceAll("\\n", "\n"));
  if (stop.length) body.stop = stop;
  return body;
}

function messages(question) {
  const system = sampling.elements.system.value;
  return [...(system ? [{ role: "system", content: system }] : []), ...turns, question];
}

function addTurn(who, className, text = "") {
  byId("empty").hidden = true;
  const turn = element("article", `turn ${className}`);
  const shown = element("div", "text", text);
  turn.append(element("div", "who", who), shown);
  conversation.append(turn);
  isAtEnd = true;
  scrollToEnd();
  return { turn, shown };
}

/** Goes to the end of the conversation, unless the reader went elsewhere. */
function scrollToEnd() {
  if (isAtEnd) conversation.scrollTop = conversation.scrollHeight;
}

function followingEnd(change) {
  change();
  scrollToEnd();
}

function writerInto({ turn, shown }) {
  let reasoning = null;
  return (text, isReasoning) =>
    followingEnd(() => {
      if (!isReasoning) {
        shown.append(text);
        return;
      }
      if (!reasoning) {
        const details = element("details", "");
        reasoning = element("div", "reasoning");
        details.append(element("summary", "who", "Reasoning"), reasoning);
        turn.insertBefore(details, shown);
      }
      reasoning.append(text);
    });
}

function measuredLine({ reason, usage, firstTokenMs, lastTokenMs }) {
  const parts = [REASONS[reason] ?? reason];
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens;
    parts.push(`${usage.prompt_tokens} prompt tokens${cached ? ` (${cached} cached)` : ""}`);
    parts.push(`${usage.completion_tokens} generated`);
  }
  if (firstTokenMs !== null) parts.push(`first token ${milliseconds(firstTokenMs)}`);
  if (usage && usage.completion_tokens > 1 && lastTokenMs > firstTokenMs) {
    const perSecond = (1000 * (usage.completion_tokens - 1)) / (lastTokenMs - firstTokenMs);
    parts.push(`${perSecond.toFixed(1)} tokens/s`);
  }
  return parts.join(" · ");
}

function setBusy(isBusy) {
  byId("send").disabled = byId("clear").disabled = isBusy;
  byId("stop").disabled = !isBusy;
}

async function send() {
  const text = message.value;
  if (running || !text.trim()) return;
  clearInvalid();
  const question = { role: "user", content: text };
  const asked = addTurn("You", "user", text);
  const answered = addTurn(byId("model").value || "Model", "assistant");
  answered.turn.setAttribute("aria-busy", "true");
  message.value = "";
  running = new AbortController();
  setBusy(true);
  announce("Waiting for the answer");
  try {
    const body = { ...readSettings(), messages: messages(question) };
    const onText = writerInto(answered);
    const measured = await answer(body, { key: key.value, signal: running.signal, onText });
    const content = answered.shown.textContent;
    // Stopped before the first token there is no turn of the model to remember, and so none of the person.
    if (content || measured.reason !== "stopped") turns.push(question, { role: "assistant", content });
    followingEnd(() => answered.turn.append(element("div", "measured", measuredLine(measured))));
    if (measured.firstTokenMs !== null) noteFirstToken(measured.firstTokenMs);
    announce(`Answer complete: ${REASONS[measured.reason] ?? measured.reason}`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    fail(error, asked, answered, text);
  } finally {
    answered.turn.removeAttribute("aria-busy");
    running = null;
    setBusy(false);
    message.focus();
  }
}

/** Shows why there is no answer. The question is not part of the conversation then, and can be sent again. */
function fail(error, asked, answered, text) {
  asked.turn.querySelector(".who").textContent = "You (not answered, and left out from now on)";
  followingEnd(() => answered.turn.append(element("div", "error", error.message)));
  announce(error.message);
  if (message.value === "") message.value = text;
  const input = sampling.elements[error.field.split(/[.[]/)[0]];
  if (input) {
    input.setAttribute("aria-invalid", "true");
    byId("settings").open = true;
  }
}

function clearInvalid() {
  for (const input of sampling.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}

function clear() {
  turns = [];
  conversation.replaceChildren(byId("empty"));
  byId("empty").hidden = false;
  message.focus();
}

function showSettingsLine() {
  const changed = [...NUMBERS, "stop", "system"].filter((name) => sampling.elements[name].value !== "");
  byId("settings-line").textContent = changed.length ? changed.join(", ") : "model's defaults";
}

async function loadModels() {
  const select = byId("model");
  try {
    const response = await call("v1/models", { headers: authorization(key.value) });
    const { data } = await response.json();
    const options = data.map(({ id, max_model_len: length }) => {
      const option = element("option", "", id);
      option.value = id;
      option.title = `context of ${length} tokens`;
      return option;
    });
    const chosen = select.value;
    select.replaceChildren(...options);
    if (data.some(({ id }) => id === chosen)) select.value = chosen;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    select.replaceChildren(element("option", "", "models unknown"));
    select.firstChild.value = "";
    announce(error.message);
  }
}

conversation.addEventListener("scroll", () => {
  isAtEnd = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight < NEAR_END_PX;
});
new ResizeObserver(scrollToEnd).observe(conversation);
composer.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", clear);
sampling.addEventListener("submit", (event) => event.preventDefault());
sampling.addEventListener("input", showSettingsLine);
sampling.addEventListener("reset", () => {
  clearInvalid();
  // The key is no sampling option: the button leaves it.
  const kept = key.value;
  setTimeout(() => {
    key.value = kept;
    showSettingsLine();
  });
});
key.addEventListener("change", () => {
  sessionStorage.setItem(KEY_NAME, key.value);
  loadModels();
  follow(key.value);
});

key.value = sessionStorage.getItem(KEY_NAME) ?? "";
if (matchMedia("(min-width: 900px)").matches) byId("live").open = byId("settings").open = true;
showSettingsLine();
loadModels();
follow(key.value);
message.focus();
